"""Results on their way to people: tables, lines of JSON, a page, and texts with their changes marked."""
