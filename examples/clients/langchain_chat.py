"""LangChain with adapters, each a model of one address: `langchain_chat.py http://127.0.0.1:8000/v1 MODEL ...`."""

import sys

from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI

address, *models = sys.argv[1:]
prompt = ChatPromptTemplate.from_messages([("system", "You answer in one sentence."), ("user", "{question}")])
for model in models:
    chat = ChatOpenAI(base_url=address, api_key="none", model=model, temperature=0, max_tokens=32)
    print(f"{model}: ", end="")
    for part in (prompt | chat).stream({"question": "What is a fox?"}):
        print(part.content, end="", flush=True)
    print()
    answers = chat.batch(["Count to three.", "Name a colour."])
    print(f"{model}, two at once:", [answer.content for answer in answers])
