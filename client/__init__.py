"""The Flower ClientApp: parse, local update, reply."""
