"""Text as people and language models write it, to the words that are spoken. Knows no grpc and no torch."""
