"""A chat bot: an answer to each line, and a picture where one is asked for.

    ai-worker daemon --queue reply:5 --queue batch:1      # answers go before bulk work
    python chat_bot.py CONVERSATION --model gpt --painter painter

`/picture` has the latest exchange painted. Earlier messages and facts of the conversation are drawn into each prompt by its key.
"""

import argparse
import sys
from pathlib import Path

from ai_worker.client import Client, Item
from ai_worker.errors import AiWorkerError

PERSONA = "Ty jesteś Kasia z działu obsługi sklepu rowerowego: uprzejma, konkretna, nie obiecujesz tego, czego nie wiesz."


def answer(client: Client, conversation: str, message: str, model: str) -> str | None:
    """The bot's answer; None when there is none within 30 seconds."""
    item, parameters = Item(message, context_key=conversation), {"persona": PERSONA, "max_words": 80}
    task = client.submit(item, task_type="reply", model=model, queue="reply", parameters=parameters, result_ttl=30 * 86_400)
    done = client.wait(task.items[0], timeout=30, default=None, default_on_error=True)
    return done.text if done else None


def picture(client: Client, dialogue: str, model: str, painter: str) -> Path:
    """A picture of a dialogue: one model writes the prompt, another one paints it."""
    prompt = client.submit(dialogue, task_type="image_prompt", model=model, queue="reply")
    wanted = client.wait(prompt.items[0], timeout=60).text
    task = client.submit(wanted, task_type="image", model=painter, queue="reply", parameters={"size": "1024x1024"})
    painted = client.wait(task.items[0], timeout=180)
    file = Path(f"picture-{painted.id_task_item}.{painted.files[0].mime_type.rpartition('/')[2]}")
    file.write_bytes(client.file(painted.files[0]))
    return file


def main() -> None:
    parser = argparse.ArgumentParser(description="A chat bot; see the top of this file.")
    parser.add_argument("conversation", help="whose: any name")
    parser.add_argument("--model", default="gpt")
    parser.add_argument("--painter", default="painter")
    options = parser.parse_args()
    dialogue = ""
    with Client() as client:
        for line in map(str.strip, sys.stdin):
            if line == "/picture" and dialogue:
                print(f"[{picture(client, dialogue, options.model, options.painter)}]", flush=True)
            elif line:
                said = answer(client, options.conversation, line, options.model)
                dialogue = f"Klient: {line}\nKasia: {said}"
                print(said or "Proszę chwilę poczekać, odpowiem za moment.", flush=True)


if __name__ == "__main__":
    try:
        main()
    except AiWorkerError as error:
        sys.exit(f"{error}")
