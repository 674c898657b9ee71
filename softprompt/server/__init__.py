"""Many tasks from one frozen model over HTTP: OpenAI's endpoints, classification, and prompts that come and go."""
