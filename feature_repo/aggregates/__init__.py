"""Bar columns made of a market's other tables, in two times."""
