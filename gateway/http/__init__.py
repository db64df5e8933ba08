"""OpenAI's speech API over HTTP, and a page to hear it: a process of its own that calls the gateway over gRPC."""
