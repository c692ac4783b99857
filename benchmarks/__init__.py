"""Speed against peers and against the limit of the machine; run from the repository's root."""
