"""Questions whose answers a small language model knows: the word that a right answer contains, and a whole answer."""

from typing import NamedTuple


class Question(NamedTuple):
    """A question, the word that a right answer contains, and a whole answer."""

    question: str
    word: str  # or several, of which one is enough, separated by /
    answer: str

    @property
    def words(self) -> list[str]:
        """Words of which a right answer contains one."""
        return self.word.split("/")


QUESTIONS = tuple(
    Question(*line.split(" | "))
    for line in """\
What is the capital of France? | Paris | The capital of France is Paris.
What is the capital of Japan? | Tokyo | The capital of Japan is Tokyo.
What is the capital of Italy? | Rome | The capital of Italy is Rome.
What is the capital of Germany? | Berlin | The capital of Germany is Berlin.
What is the capital of Spain? | Madrid | The capital of Spain is Madrid.
What is the capital of England? | London | The capital of England is London.
What is the capital of Russia? | Moscow | The capital of Russia is Moscow.
What is the capital of China? | Beijing | The capital of China is Beijing.
What is the capital of Egypt? | Cairo | The capital of Egypt is Cairo.
What is the capital of Greece? | Athens | The capital of Greece is Athens.
Which planet is closest to the sun? | Mercury | Mercury is the planet closest to the sun.
Which planet is known as the red planet? | Mars | Mars is known as the red planet.
What is the largest planet in our solar system? | Jupiter | Jupiter is the largest planet in our solar system.
What is the largest ocean on Earth? | Pacific | The Pacific Ocean is the largest ocean on Earth.
What is the tallest mountain on Earth? | Everest | Mount Everest is the tallest mountain on Earth.
On which continent is Brazil? | South America | Brazil is in South America.
On which continent is Kenya? | Africa | Kenya is in Africa.
Who wrote the play Hamlet? | Shakespeare | Hamlet was written by William Shakespeare.
Who painted the Mona Lisa? | Leonardo | The Mona Lisa was painted by Leonardo da Vinci.
Who developed the theory of relativity? | Einstein | Albert Einstein developed the theory of relativity.
Who was the first president of the United States? | Washington | The first president was George Washington.
What is the chemical symbol of gold? | Au | The chemical symbol of gold is Au.
Which gas do plants take in for photosynthesis? | carbon dioxide | Plants take in carbon dioxide for photosynthesis.
Which gas do humans need to breathe? | oxygen | Humans need oxygen to breathe.
What is frozen water called? | ice | Frozen water is called ice.
How many days are in a week? | seven/7 | There are seven days in a week.
How many legs does a spider have? | eight/8 | A spider has eight legs.
What is two plus two? | 4/four | Two plus two is four.
What color is the sky on a clear day? | blue | The sky is blue on a clear day.
Which animal is known as man's best friend? | dog | The dog is known as man's best friend.
""".splitlines()
)
