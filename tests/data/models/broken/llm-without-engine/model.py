from modelkit import LLM


class Chat(LLM):
    """Has no engine to run on."""
