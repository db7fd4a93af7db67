"""The soak run: a million messages over RabbitMQ while connections, the broker and the workers keep failing."""
