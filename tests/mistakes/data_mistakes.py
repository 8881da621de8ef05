"""Mistakes in data files, and in how a recipe reads them."""

from tests.mistakes.mistake import Mistake

_CHAT = {"train.csv": "chat.jsonl", '  prompt: "{{ question }}"\n  completion: "{{ answer }}"\n': ""}
_TABLE = "question,answer\nwhat is a,b\nwhat is c,d\nwhat is e,f\n"

DATA = (
    Mistake("`data.train` is misspelt", "did you mean 'train.csv'?", recipe={"train.csv": "trian.csv"}),
    Mistake("The file is empty", "write rows into it", files={"train.csv": ""}),
    Mistake(
        "The table has a header and no rows",
        "a table needs rows below its header",
        files={"train.csv": "question,answer\n"},
    ),
    Mistake(
        "The file is an Excel workbook",
        "save its sheet as CSV UTF-8",
        files={"train.xlsx": b"PK\x03\x04"},
        recipe={"train.csv": "train.xlsx"},
    ),
    Mistake(
        "The file is compressed",
        "unpack it",
        files={"train.jsonl.gz": b"\x1f\x8b"},
        recipe={"train.csv": "train.jsonl.gz"},
    ),
    Mistake(
        "The file was saved in Windows' encoding",
        "save the file as UTF-8 (CSV UTF-8 in Excel)",
        files={"train.csv": (_TABLE + "what is café,g\n").encode("cp1252")},
    ),
    Mistake(
        "A cell has a comma and no quotes",
        "a cell that has the separator in it is put in quotes",
        files={"train.csv": _TABLE + "what is g, h\n".replace("h", "h, or i")},
    ),
    Mistake(
        "A quote is never closed",
        'close it, and write " within it as ""',
        files={"train.csv": _TABLE + '"what is g,h\nwhat is i,j\n'},
    ),
    Mistake(
        "The table has an index column without a name",
        "write the file without it",
        files={"train.csv": ",question,answer\n0,a,b\n1,c,d\n"},
    ),
    Mistake(
        "A line of JSON is cut off",
        "data.on_error: skip leaves such rows out",
        files={"train.jsonl": '{"question": "a", "answer": "b"}\n{"question": "c", "answ\n'},
        recipe={"train.csv": "train.jsonl"},
    ),
    Mistake(
        "A JSON array is called .jsonl",
        "A file that is one array is named .json",
        files={"train.jsonl": '[\n{"question": "a", "answer": "b"}\n]\n'},
        recipe={"train.csv": "train.jsonl"},
    ),
    Mistake(
        "The template names a column that isn't there",
        "did you mean 'question'?",
        recipe={"{{ question }}": "{{ questions }}"},
    ),
    Mistake(
        "A value is null",
        "give it a default",
        files={"train.jsonl": '{"question": "a", "answer": "b"}\n{"question": null, "answer": "d"}\n'},
        recipe={"train.csv": "train.jsonl"},
    ),
    Mistake(
        "An answer is empty",
        "data.on_error: skip leaves such rows out",
        files={"train.csv": _TABLE + "what is g,\n"},
    ),
    Mistake(
        "The columns don't say what is asked and what is answered",
        "Write data.prompt and data.completion",
        files={"train.csv": "one,two\na,b\nc,d\n"},
        recipe={'  prompt: "{{ question }}"\n  completion: "{{ answer }}"\n': ""},
    ),
    Mistake(
        "Rows are longer than `max_length`",
        "Raise max_length, or set overflow",
        recipe={"  validation: null": "  validation: null\n  max_length: 4"},
    ),
    Mistake(
        "There are too few rows to set some aside",
        "Give more rows, or set none aside",
        files={"train.csv": "question,answer\na,b\n"},
        recipe={"validation: null": "validation: 0.1"},
    ),
    Mistake(
        "A chat has a role of another tool",
        "roles are system, developer, user, assistant, tool, function",
        files={"chat.jsonl": '{"messages": [{"role": "bot", "content": "hello"}]}\n'},
        recipe=_CHAT,
    ),
    Mistake(
        "A chat has no answer",
        "`manytune data check` says why",
        files={"chat.jsonl": '{"messages": [{"role": "user", "content": "hello"}]}\n'},
        recipe={**_CHAT, "validation: null": "validation: null\n  on_error: skip"},
    ),
    Mistake(
        "A number of a JSON line is NaN",
        "write null or leave the field out",
        files={"train.jsonl": '{"question": "a", "answer": "b"}\n{"question": NaN, "answer": "d"}\n'},
        recipe={"train.csv": "train.jsonl"},
    ),
    Mistake(
        "The lines of a JSON file have commas between them",
        "Leave out the commas",
        files={"train.jsonl": '{"question": "a", "answer": "b"},\n{"question": "c", "answer": "d"},\n'},
        recipe={"train.csv": "train.jsonl"},
    ),
    Mistake(
        "Two columns have the same name",
        "give each column a name of its own",
        files={"train.csv": "question,answer,answer\na,b,c\n"},
    ),
    Mistake(
        "The table has no header",
        "this row has what is a, b",
        files={"train.csv": "what is a,b\nwhat is c,d\nwhat is e,f\n"},
    ),
    Mistake(
        "A Parquet file is cut off",
        "write or copy it again",
        files={"train.parquet": b"PAR1" + b"\0" * 60},
        recipe={"train.csv": "train.parquet"},
    ),
    Mistake(
        "A directory without rows is given as data",
        "name a .jsonl",
        files={"rows/.hidden": ""},
        recipe={"train.csv": "rows"},
    ),
    Mistake(
        "An address is given as data", "download the file", recipe={"train.csv": "https://a.b/train.jsonl"}
    ),
    Mistake("A pattern is given as data", "list the files", recipe={"train.csv": "'*.jsonl'"}),
    Mistake(
        "A share is written in per cent", "is written 0.1", recipe={"validation: null": "validation: 10%"}
    ),
    Mistake(
        "The prompt is a column's name",
        "as {{ question }}",
        recipe={'"{{ question }}"': "question"},
    ),
    Mistake(
        "A field is written in single braces",
        "as {{ question }}",
        recipe={'"{{ question }}"': '"What is {question}?"'},
    ),
    Mistake(
        "The prompt is a file's name",
        "is named by data.template",
        recipe={'"{{ question }}"': "prompts/ask.jinja"},
    ),
    Mistake(
        "Rows are longer than the base reads",
        "Set data.max_length to 64",
        files={"train.csv": _TABLE + f"{'a' * 100},b\n"},
    ),
    Mistake(
        "A table of numbers is given to `init`",
        "Add a column with a text for each row",
        "init numbers.csv --output new.yaml",
        files={"numbers.csv": "a,b\n1,2\n3,4\n"},
    ),
)
