from collections.abc import Iterator

from modelkit import Field, Model, method


class MyModel(Model):
    """A class whose methods marked @method become calls; their annotations say what they take and return."""

    def load(self) -> None:
        """Prepare the model, once, before the first call: import heavy libraries and read weights here."""
        self.greeting = "Hello"

    @method
    def predict(self, name: str) -> str:
        """Greet somebody."""
        return f"{self.greeting}, {name}!"

    @method
    def generate(self, name: str, times: int = Field(3, ge=1, le=100)) -> Iterator[str]:
        """Greet somebody several times, as a stream."""
        for _ in range(times):
            yield f"{self.greeting}, {name}! "
