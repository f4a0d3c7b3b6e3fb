"""The studio: edits in a browser.

    sage ui

service.py does the work and knows no HTTP; api.py is what can be asked for; page/ is what is seen, and asks the API;
server.py is how it is reached.
"""
