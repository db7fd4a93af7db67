"""The RocketMQ backend: a native asyncio client of the remoting protocol, for 4.9 and 5.x."""
