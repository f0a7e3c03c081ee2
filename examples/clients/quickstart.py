"""Call the methods of a served model by name.

modelkit serve examples/hello --local
python examples/clients/quickstart.py [HOST:PORT]
"""

import sys

from modelkit import Client, InvalidArgumentError


def main(address: str | None = None) -> None:
    with Client(address) as client:
        # The server describes its methods: names, types and limits are known here.
        print(client.methods, end="\n\n")

        print(client.methods.greet(name="Ada"))

        # A dataclass on the other side: any mapping with its fields will do.
        person = {"name": "Ada", "languages": ["en", "fr"]}
        print(client.methods.introduce(person=person))

        # Limits are checked before the model sees a value; the error says which argument broke which.
        try:
            client.methods.greet(name="a name of far more than the forty characters allowed")
        except InvalidArgumentError as error:
            print(f"refused: {error}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
