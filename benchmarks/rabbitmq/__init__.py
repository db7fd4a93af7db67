"""RabbitMQ: brokerkit beside its peers, a raw socket and the Java client, on one private node."""
