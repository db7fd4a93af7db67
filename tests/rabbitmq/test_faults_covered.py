"""Which test covers which of the 42 faults of the reference (section 5 of its RabbitMQ facts).

"suite" are cases of the conformance suite (brokerkit/testing/suite), which run on quorum and on classic queues.
"""

from __future__ import annotations

import importlib

import pytest

#: Fault -> what it is, and (module, test) of each test.
COVERED: dict[int, tuple[str, list[tuple[str, str]]]] = {
    1: ("reset in the middle of a message", [
        ("connection", "test_a_reset_within_a_message_leaves_an_unknown_outcome_and_the_next_send_works"),
        ("connection", "test_resets_under_load_lose_nothing"),
        ("suite", "test_reset_during_send"),
    ]),
    2: ("reset between store and confirm", [
        ("connection", "test_a_send_whose_confirm_was_lost_is_sent_again_with_its_id_and_resolves_once"),
    ]),
    3: ("half-open link", [
        ("connection", "test_a_link_that_falls_silent_is_replaced_within_20_s_for_publishing_and_consuming"),
        ("connection", "test_a_ping_on_a_silent_link_returns_in_its_own_time"),
        ("suite", "test_half_open_link_resumes"),
    ]),
    4: ("frozen broker", [("connection", "test_a_frozen_broker_is_given_up_and_used_again_when_it_goes_on")]),
    5: ("killed broker", [("suite", "test_broker_killed")]),
    6: ("broker stopped in good order", [
        ("connection", "test_a_broker_that_stops_in_good_order_is_waited_for_quietly"),
        ("suite", "test_survives_broker_restart"),
    ]),
    7: ("refused, flapping, cut handshake", [
        ("connection", "test_a_handshake_that_is_cut_or_no_amqp_is_an_error_in_time_and_tried_again"),
        ("connection", "test_a_port_that_flaps_is_tried_until_it_stays"),
    ]),
    8: ("wrong credentials", [("login", "test_wrong_credentials_fail_at_once_and_are_not_tried_again")]),
    9: ("virtual host missing, forbidden, deleted", [
        ("login", "test_a_virtual_host_that_is_missing_or_forbidden_is_refused_at_once"),
        ("login", "test_a_virtual_host_deleted_under_a_worker_is_waited_for"),
    ]),
    10: ("limits of connections, users, channels", [
        ("login", "test_a_connection_limit_is_retryable_and_not_hammered"),
        ("login", "test_a_connection_that_the_broker_ends_as_soon_as_it_is_used_is_not_made_anew_in_a_hot_loop"),
        ("consuming", "test_without_a_free_channel_a_send_fails_and_does_not_spin"),
    ]),
    11: ("contradicting declaration", [
        ("publishing", "test_a_declaration_that_contradicts_a_queue_fails_alone_and_names_the_argument"),
    ]),
    12: ("missing exchange", [
        ("publishing", "test_a_missing_exchange_fails_its_own_messages_only"),
        ("publishing", "test_a_deleted_topic_is_declared_again_by_the_manager_and_nothing_is_lost"),
    ]),
    13: ("missing permission, internal exchange", [
        ("publishing", "test_a_missing_permission_and_an_internal_exchange_fail_their_own_messages_only"),
    ]),
    14: ("returned message", [("publishing", "test_a_returned_message_fails_alone_also_among_equal_ids")]),
    15: ("refused message", [("publishing", "test_a_refused_message_is_sent_again_until_there_is_room")]),
    16: ("answers in any order", [
        ("publishing", "test_confirms_refusals_and_returns_in_any_order_resolve_every_send_once"),
    ]),
    17: ("body over the broker's limit", [("publishing", "test_a_body_over_the_brokers_limit_fails_alone")]),
    18: ("bodies of many frames, byte by byte", [
        ("publishing", "test_bodies_of_every_number_of_frames_arrive_byte_by_byte"),
    ]),
    19: ("what AMQP cannot carry", [("publishing", "test_what_amqp_cannot_carry_fails_before_anything_is_written")]),
    20: ("memory alarm", [
        ("alarms", "test_in_a_memory_alarm_publishers_wait_to_their_deadline_and_consumers_go_on"),
        ("alarms", "test_a_send_through_the_manager_outlives_a_memory_alarm"),
    ]),
    21: ("disk alarm during a retry", [
        ("alarms", "test_a_retry_in_a_disk_alarm_keeps_its_original_and_does_not_loop"),
    ]),
    22: ("alarm before the connection", [
        ("alarms", "test_connecting_declaring_and_consuming_work_in_an_alarm_that_is_on_already"),
    ]),
    23: ("queue deleted under its consumer", [
        ("consuming", "test_a_worker_whose_queue_was_deleted_declares_it_again_and_goes_on"),
        ("consuming", "test_a_consumer_whose_queue_is_gone_says_so_and_ignores_its_late_acknowledgements"),
        ("suite", "test_topology_deleted_under_consumer"),
    ]),
    24: ("queue deleted with publishes under way", [
        ("publishing", "test_a_queue_deleted_under_load_leaves_no_send_without_an_outcome"),
    ]),
    25: ("consumer_timeout", [("consuming", "test_consumer_timeout_ends_the_channel_of_that_consumer_only")]),
    26: ("repeated and late acknowledgements", [
        ("consuming", "test_acknowledgements_of_an_earlier_connection_and_repeated_ones_never_reach_the_broker"),
        ("suite", "test_stale_token_never_settles_another_message"),
    ]),
    27: ("handler ends after a reconnection", [
        ("consuming", "test_a_handler_that_ends_after_a_reconnection_raises_nothing_and_its_redelivery_is_skipped"),
        ("consuming", "test_what_arrives_while_a_quiet_consumer_is_renewed_is_handled_once"),
    ]),
    28: ("acknowledgement lost", [
        ("consuming", "test_lost_acknowledgements_bring_messages_back_as_redelivered_and_once_each"),
        ("suite", "test_lost_ack_does_not_rerun_handler"),
    ]),
    29: ("worker killed", [("suite", "test_worker_killed"), ("suite", "test_poison_message_is_capped")]),
    30: ("worker stopped", [("consuming", "test_the_messages_of_a_silent_worker_move_and_it_comes_back_without_harm")]),
    31: ("exclusive queue still locked", [
        ("consuming", "test_an_inbox_comes_back_under_its_name_after_the_broker_gave_up_the_dead_connection"),
    ]),
    32: ("leak of channels", [("consuming", "test_5000_channels_one_after_the_other_leave_nothing_behind")]),
    33: ("target of a delay gone", [
        ("delays", "test_what_no_group_matches_when_it_is_due_is_kept_with_the_lost_and_blocks_nothing"),
        ("delays", "test_a_retry_whose_queue_is_gone_stays_in_the_queue_of_its_target_and_others_go_on"),
        ("delays", "test_a_wheel_that_somebody_deleted_is_declared_again"),
        ("suite", "test_blocked_delay_target_blocks_only_itself"),
    ]),
    34: ("mixed delays, restarts, retry loops", [
        ("delays", "test_mixed_delays_come_never_early_in_the_order_of_their_times_and_all"),
        ("delays", "test_a_message_goes_round_the_wheel_four_times_and_its_deaths_do_not_pile_up"),
        ("suite", "test_delay_survives_restart"),
    ]),
    35: ("poison, undecodable bodies, handlers that hang", [
        ("suite", "test_poison_message_is_capped"),
        ("suite", "test_undecodable_task_does_not_stall"),
        ("suite", "test_retry_gives_up_to_dead_letter"),
    ]),
    36: ("cluster without a quorum", [
        ("cluster", "test_without_a_quorum_every_call_ends_in_its_time_and_with_one_all_goes_on"),
        ("cluster", "test_traffic_goes_on_when_the_leader_of_a_queue_dies"),
    ]),
    37: ("credentials change", [
        ("login", "test_a_password_that_changes_while_connected_is_asked_for_again"),
        ("login", "test_credentials_that_fail_at_the_first_connecting_are_the_senders_error"),
    ]),
    38: ("TLS", [
        ("login", "test_a_bad_certificate_is_refused_at_once_and_not_tried_again"),
        ("login", "test_tls_is_verified_by_default_and_plain_clients_get_no_further"),
        ("login", "test_a_broker_that_wants_a_certificate_gets_ours_and_refuses_none"),
        ("login", "test_tls_works_with_a_good_certificate_and_carries_messages"),
    ]),
    39: ("slow consumer, slow broker", [
        ("alarms", "test_a_broker_that_does_not_read_costs_bounded_memory_and_every_send_ends_in_time"),
        ("suite", "test_slow_consumer_has_bounded_memory"),
    ]),
    40: ("cancellation, stalled loop", [
        ("connection", "test_cancelling_sends_receives_and_acknowledgements_anywhere_leaves_nothing_stuck"),
        ("connection", "test_a_loop_that_stalls_for_more_than_two_heartbeats_loses_no_message"),
        ("delays", "test_a_delayed_send_returns_in_time_when_its_declarations_hang"),
        ("suite", "test_cancel_send_is_not_success"),
    ]),
    41: ("clock step", [("delays", "test_a_step_of_the_wall_clock_moves_no_timer")]),
    42: ("SIGTERM with everything under way", [
        ("suite", "test_worker_shutdown_drains"),
        ("suite", "test_graceful_restarts_kill_no_message"),
    ]),
}  # fmt: skip


@pytest.mark.parametrize("number", range(1, 43))
def test_every_fault_has_tests_that_exist(number: int) -> None:
    _, tests = COVERED[number]
    assert tests
    for module, name in tests:
        where = "brokerkit.testing.suite" if module == "suite" else f"tests.rabbitmq.test_faults_{module}"
        assert callable(getattr(importlib.import_module(where), name, None)), f"{where} has no {name}"
