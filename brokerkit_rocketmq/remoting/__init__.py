"""RocketMQ's remoting protocol: frames, connections, signatures and the formats of what they carry.

It is usable on its own and imports nothing of brokerkit.
"""
