"""RocketMQ: brokerkit beside a raw socket and the clients of others, on one private server."""
