"""Which test covers which fault.

"suite" are cases of the conformance suite (brokerkit/testing/suite), which run on 4.9.4 and on 5.5.0; other names are
modules of this folder.
"""

from __future__ import annotations

import importlib

import pytest

#: Fault -> (module, test) of each test.
COVERED: dict[str, list[tuple[str, str]]] = {
    "cut at byte N of a send": [
        ("faults_connection", "test_a_cut_within_a_send_leaves_an_unknown_outcome_and_the_next_send_works"),
        ("faults_connection", "test_cuts_anywhere_under_load_lose_nothing"),
        ("suite", "test_reset_during_send"),
    ],
    "cut between store and answer": [
        ("faults_connection", "test_a_send_whose_answer_was_lost_is_sent_again_with_its_id_and_resolves_once"),
    ],
    "cut at byte N of the answer to a pull": [
        (
            "faults_connection",
            "test_a_cut_within_the_answer_to_a_pull_loses_nothing_and_repeats_only_what_was_in_hand",
        ),
    ],
    "resets under load": [("faults_connection", "test_resets_under_load_lose_nothing")],
    "half-open links": [
        (
            "faults_connection",
            "test_links_that_fall_silent_are_replaced_within_20_s_for_publishing_and_consuming",
        ),
        ("faults_connection", "test_a_ping_on_a_silent_link_returns_in_its_own_time"),
        ("suite", "test_half_open_link_resumes"),
    ],
    "slow links": [
        ("faults_connection", "test_links_that_carry_a_few_bytes_at_a_time_and_late_lose_and_double_nothing"),
    ],
    "frozen brokers": [("faults_brokers", "test_frozen_brokers_are_given_up_and_used_again_when_they_go_on")],
    "brokers killed or stopped in the middle of everything": [
        ("faults_brokers", "test_brokers_that_die_in_the_middle_of_everything_lose_nothing_that_was_confirmed"),
        ("suite", "test_broker_killed"),
        ("suite", "test_survives_broker_restart"),
    ],
    "offsets lost with a broker": [
        ("faults_offsets", "test_a_group_whose_first_offsets_are_forgotten_begins_at_the_first_message"),
        ("faults_offsets", "test_who_knows_better_goes_on_and_who_does_not_begins_at_the_first_message"),
    ],
    "one of two brokers lost": [
        ("faults_brokers", "test_one_of_two_brokers_is_done_without_and_what_lies_on_it_comes_when_it_is_back"),
        ("sends_to_two_brokers", "test_a_broker_that_is_gone_costs_nothing_and_takes_part_again"),
    ],
    "slave in the place of its master": [
        (
            "faults_brokers",
            "test_a_slave_is_read_while_its_master_is_away_and_nothing_comes_twice_when_that_is_back",
        ),
        ("failover", "test_a_lost_master_leaves_what_its_slave_can_be_read_and_comes_back"),
    ],
    "all NameServers lost": [
        ("faults_name_servers", "test_without_any_name_server_sends_and_pulls_go_on_and_a_new_topic_waits"),
    ],
    "one of two NameServers lost": [
        ("faults_name_servers", "test_one_of_two_name_servers_is_enough_for_everything"),
        ("failover", "test_a_name_server_that_dies_is_replaced_by_the_other"),
    ],
    "NameServers started again": [
        ("faults_name_servers", "test_name_servers_that_come_back_without_what_they_knew_disturb_nothing"),
    ],
    "busy broker, full disk": [
        ("faults_refusals", "test_sends_that_a_broker_refuses_for_a_while_wait_for_it_and_consumers_go_on"),
    ],
    "account taken away": [
        (
            "faults_refusals",
            "test_an_account_that_is_taken_away_is_refused_and_works_again_when_it_is_given_back",
        ),
    ],
    "members that come and go": [
        ("faults_groups", "test_a_storm_of_joining_and_leaving_members_loses_nothing"),
        ("faults_groups", "test_members_that_leave_while_they_join_leave_no_ghost"),
        ("suite", "test_graceful_restarts_kill_no_message"),
    ],
    "members that die": [
        ("faults_groups", "test_what_a_dead_member_had_fetched_is_looked_into_quickly"),
        ("suite", "test_worker_killed"),
        ("suite", "test_poison_message_is_capped"),
    ],
}


@pytest.mark.parametrize("fault", COVERED)
def test_every_fault_has_tests_that_exist(fault: str) -> None:
    tests = COVERED[fault]
    assert tests
    for module, name in tests:
        where = "brokerkit.testing.suite" if module == "suite" else f"tests.rocketmq.test_{module}"
        assert callable(getattr(importlib.import_module(where), name, None)), f"{where} has no {name}"
