from modelkit import Model, method


class Hello(Model):
    @method
    def greet(self, name: str) -> str:
        """Greet somebody."""
        return f"Hello, {name}!"
