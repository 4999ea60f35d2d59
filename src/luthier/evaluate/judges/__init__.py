"""Language models as judges: what they are asked, what their verdicts say, and how votes of people correct them."""
