from modelkit import Model


class Hello(Model):
    pass
