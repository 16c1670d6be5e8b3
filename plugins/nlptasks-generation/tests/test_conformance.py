from nlptasks.testing import Conformance


class TestGeneration(Conformance):
    task = "generation"
