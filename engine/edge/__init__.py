"""An edge client: one of Flower's SuperNodes, and beside it a process that answers its messages."""
