"""The studio: edits in a browser.

    sage ui

service.py does the work and knows no Gradio; page.py is what is seen; server.py is how it is reached.
"""
