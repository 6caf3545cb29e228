"""The demo: real workers, a real server, a real kill."""
