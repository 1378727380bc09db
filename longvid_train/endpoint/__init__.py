"""A chat model behind an OpenAI-compatible endpoint: `ChatClient(settings).ask(messages, parse)`; docs/endpoint.md."""

from longvid_train.endpoint.client import ChatClient
from longvid_train.endpoint.messages import Answer, Conversation, Failure, Message, OffFormatError
from longvid_train.endpoint.settings import EndpointSettings
from longvid_train.endpoint.spending import Spending

__all__ = [
    "Answer",
    "ChatClient",
    "Conversation",
    "EndpointSettings",
    "Failure",
    "Message",
    "OffFormatError",
    "Spending",
]
