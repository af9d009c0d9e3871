"""AI Worker from Python: submit texts, wait for their results, read what is there.

    with Client() as client:                                   # AI_WORKER_DB_URL, or Client("mysql://…")
        task = client.submit(["Poszłem do domu."], model="gpt")
        result = client.wait(task.items[0], timeout=30, default=None)

`AsyncClient` has the same methods as coroutines. Both only use the database: the work is done by workers that run elsewhere.
"""

from ai_worker.client.asynchronous import AsyncClient
from ai_worker.client.synchronous import Client
from ai_worker.client.values import RAISE, Item, SubmittedTask
from ai_worker.errors import ItemFailed, ItemMissing, WaitTimeout
from ai_worker.models import Need
from ai_worker.store.answers import Finished
from ai_worker.store.files import StoredFile

__all__ = [
    "RAISE",
    "AsyncClient",
    "Client",
    "Finished",
    "Item",
    "ItemFailed",
    "ItemMissing",
    "Need",
    "StoredFile",
    "SubmittedTask",
    "WaitTimeout",
]
