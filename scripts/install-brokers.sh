#!/bin/sh
# install-brokers.sh PYTHON prints the brokers that the tests can count on, with commas: a value for BROKERKIT_REQUIRE.
# Installs first what is missing, as root on Debian and its relatives, and lets PYTHON, which has brokerkit, fetch the
# jars of RocketMQ; says on stderr what it does, and what will not be tested and why.
set -eu

python=${1:-python3}
found=${BROKERKIT_REQUIRE:-}

say() { echo "brokers: $*" >&2; }
add() { case ",$found," in *",$1,"*) ;; *) found=${found:+$found,}$1 ;; esac; }

log=$(mktemp)
policy=
clean() { rm -f "$log" $policy; }
trap clean EXIT
trap 'exit 1' HUP INT TERM

# install PROGRAM PACKAGE: 0 when the program is there in the end, else $why says why not.
install() {
    command -v "$1" > /dev/null && return 0
    if [ "$(id -u)" != 0 ]; then why="only root may: apt-get install $2"; return 1; fi
    if ! command -v apt-get > /dev/null; then why="there is no apt-get; install $2 in your system's way"; return 1; fi
    say "installing the package $2, once ..."
    # A package starts its service unless told not to: the tests start nodes of their own.
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        policy=/usr/sbin/policy-rc.d
        printf '#!/bin/sh\nexit 101\n' > "$policy"
        chmod 755 "$policy"
    fi
    if apt_get update && apt_get install -y --no-install-recommends "$2" && command -v "$1" > /dev/null; then return 0; fi
    why="installing $2 failed: $(tail -n 3 "$log" | tr '\n' ' ')"
    return 1
}

apt_get() {
    DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 \
        apt-get -qq -o DPkg::Lock::Timeout=300 "$@" > "$log" 2>&1 < /dev/null
}

mapper=$(command -v epmd || true)
if [ -n "${BROKERKIT_TEST_RABBITMQ_URL:-}" ]; then
    add rabbitmq
elif install /usr/lib/rabbitmq/bin/rabbitmq-server rabbitmq-server; then
    add rabbitmq
    # Installing leaves Erlang's port mapper running; it refuses to end when it is used.
    [ -n "$mapper" ] || epmd -kill > "$log" 2>&1 || true
elif command -v rabbitmq-server > /dev/null; then
    add rabbitmq # of another kind of system
else
    say "RabbitMQ is not tested: $why"
fi
if [ "${BROKERKIT_TEST_RABBITMQ4:-}" = 1 ] && ! install /usr/sbin/debootstrap debootstrap; then
    say "RabbitMQ 4.x is not tested: $why"
fi

if [ -n "${BROKERKIT_TEST_ROCKETMQ_URL:-}" ]; then
    add rocketmq
# With a compiler, for the Java client of the tests.  17 is the Java that was tried; newer systems have only others.
elif install javac openjdk-17-jdk-headless || install javac default-jdk-headless; then
    install mvn maven || say "there is no Maven: $why" # not needed where the jars are in the cache
    if "$python" -m brokerkit.testing.services.rocketmq --fetch; then
        add rocketmq
    else
        say "RocketMQ is not tested: it could not be fetched"
    fi
else
    say "RocketMQ is not tested: $why"
fi

echo "$found"
