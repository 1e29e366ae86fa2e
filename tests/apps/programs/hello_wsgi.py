# SPDX-License-Identifier: GPL-2.0-or-later
"""A WSGI application for gunicorn."""


def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "6")])
    return [b"hello\n"]
