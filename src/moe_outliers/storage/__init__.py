"""Files of results, whole or absent: tables, statistics files, receipts, digests."""
