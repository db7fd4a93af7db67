"""The RabbitMQ backend of brokerkit: AMQP 0-9-1 on an asyncio protocol of its own.

Importing it needs no client library; connecting needs pika, whose codec it uses for the handshake and for all
frames that are rare.  ``pip install brokerkit[rabbitmq]``.
"""
