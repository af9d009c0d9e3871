"""The pages of the dashboard: rendered here, live by server-sent events."""
