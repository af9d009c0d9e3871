"""The HTTP API and the dashboard (extra `web`): any number of instances on one database, none with a state of its own."""
