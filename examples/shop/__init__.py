"""A small application in modules: what is sent (messages), who handles it (billing, shipping).

routers.py runs it, testing_the_shop.py tests it without a broker.
"""
