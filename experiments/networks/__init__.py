"""Networks of many kinds: is each change of their data found, and is what they had learned kept?"""
