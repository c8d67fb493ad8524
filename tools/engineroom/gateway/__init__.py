"""The OpenAI front end: what clients speak, where they wait, and where TTFT and ITL are measured."""
