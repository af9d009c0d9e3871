"""Reading inputs: what comes out, and what each unusable input is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ai_worker.errors import UsageError
from ai_worker.rows import LONGEST_TEXT, Layout, RowFile, format_of
from ai_worker.store.new_tasks import NewItem


def read(path: Path, data: bytes | str, **layout: object) -> tuple[list[NewItem], int]:
    """The items of a file with this content, and how many rows were skipped."""
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    with RowFile.open(str(path), Layout(**{"format": format_of(path.name), **layout})) as source:
        first = list(source.rows())
        assert list(source.rows()) == first, "a second reading must bring the same rows"
        return first, source.skipped


def refusal(path: Path, data: bytes | str, **layout: object) -> str:
    """What is said of a file with this content, in one line."""
    with pytest.raises(UsageError) as raised:
        read(path, data, **layout)
    message = str(raised.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    return tmp_path / "in.csv"


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    return tmp_path / "in.jsonl"


class TestCsv:
    def test_usual_column_and_the_others_as_context(self, csv: Path) -> None:
        items, skipped = read(csv, "id,text,author\n17,Zażółć gęślą jaźń,Anna\n18,Ala ma kota,\n")
        assert [item.text_original for item in items] == ["Zażółć gęślą jaźń", "Ala ma kota"]
        assert [json.loads(item.context or "") for item in items] == [{"id": "17", "author": "Anna"}, {"id": "18"}]
        assert skipped == 0

    def test_key_column_is_kept_apart(self, csv: Path) -> None:
        items, _ = read(csv, "id,text\n17,jeden\n,dwa\n", key_column="id")
        assert items == [NewItem("jeden", "17", None), NewItem("dwa", None, None)]

    def test_the_context_key_is_kept_apart(self, csv: Path) -> None:
        items, _ = read(csv, "klient,text,kod\nAnna,jeden,a\n,dwa,\n", context_key_column="klient", key_column="kod")
        assert items == [NewItem("jeden", "a", None, "Anna"), NewItem("dwa", None, None, None)]
        items, _ = read(csv, "klient,text\nAnna,jeden\n", context_key_column="klient", key_column="klient")
        assert items == [NewItem("jeden", "Anna", None, "Anna")]
        assert "has no column 'klnt', which --context-key-column asks for" in refusal(
            csv, "klient,text\n1,x\n", context_key_column="klnt"
        )
        assert "longer than 190" in refusal(csv, f"klient,text\n{'x' * 191},x\n", context_key_column="klient")

    @pytest.mark.parametrize("delimiter", [",", ";", "\t"])
    def test_delimiter_is_taken_from_the_header(self, csv: Path, delimiter: str) -> None:
        items, _ = read(csv, f'id{delimiter}text\n1{delimiter}"a, b; c\td"\n')
        assert items[0].text_original == "a, b; c\td"

    def test_delimiter_may_be_named(self, csv: Path) -> None:
        assert read(csv, "a|text\n1|tak, jest\n", delimiter="|")[0][0].text_original == "tak, jest"

    def test_the_only_column_is_the_text(self, csv: Path) -> None:
        assert read(csv, "Zdanie\nTo jest tekst\n")[0] == [NewItem("To jest tekst", None, None)]

    def test_text_original_goes_before_text(self, csv: Path) -> None:
        assert read(csv, "text,text_original\na,b\n")[0][0].text_original == "b"

    def test_byte_order_mark_and_windows_line_ends(self, csv: Path) -> None:
        assert read(csv, b"\xef\xbb\xbftext,id\r\nabc,1\r\n\r\ndef,2\r\n")[0] == [
            NewItem("abc", None, '{"id": "1"}'),
            NewItem("def", None, '{"id": "2"}'),
        ]

    def test_line_ends_and_quotes_inside_of_quotes(self, csv: Path) -> None:
        assert (
            read(csv, 'text\n"pierwsza\ndruga ""linia""\r\ntrzecia"\n')[0][0].text_original
            == 'pierwsza\ndruga "linia"\r\ntrzecia'
        )

    def test_emoji_beyond_the_basic_plane(self, csv: Path) -> None:
        assert read(csv, "text\n👩‍👩‍👧 jest 😀\n")[0][0].text_original == "👩‍👩‍👧 jest 😀"

    def test_other_encodings(self, csv: Path) -> None:
        assert read(csv, "text\nżółw\n".encode("cp1250"), encoding="cp1250")[0][0].text_original == "żółw"
        assert read(csv, "text\nżółw\n".encode("utf-16"), encoding="utf-16")[0][0].text_original == "żółw"

    def test_empty_cells_are_skipped_and_counted(self, csv: Path) -> None:
        items, skipped = read(csv, "id,text\n1,a\n2,\n3,  \n4,b\n")
        assert [item.text_original for item in items] == ["a", "b"]
        assert skipped == 2

    def test_a_cell_of_the_longest_size_is_taken_and_one_byte_more_is_not(self, csv: Path) -> None:
        packet = 64 << 20
        assert len(read(csv, "text\n" + "a" * LONGEST_TEXT, packet=packet)[0][0].text_original) == LONGEST_TEXT
        assert "line 3" in refusal(csv, "text\nok\n" + "a" * (LONGEST_TEXT + 1), packet=packet)
        message = refusal(csv, "id,text\n1,ok\n2," + "ą" * (LONGEST_TEXT // 2 + 1), packet=packet)
        assert "line 3" in message
        assert "16,777,216 bytes" in message
        assert "'text'" in message

    def test_a_cell_that_the_server_would_not_take(self, csv: Path) -> None:
        message = refusal(csv, "text\nok\n" + "a" * 2_000_000, packet=1_000_000)
        assert "line 3" in message
        assert "max_allowed_packet is 1,000,000" in message

    @pytest.mark.parametrize(
        ("data", "said"),
        [
            (b"", "is empty"),
            (b"\n\n", "is empty"),
            (b"id,text\n", "a header, but no rows"),
            (b"id,text\n1,\n2,\n", "all of its 2 rows are empty"),
            (b"id,body\n1,a\n", "no column named text_original or text; its columns are 'id', 'body'"),
            (b"id,text,id\n1,a,2\n", "line 1: the header names the column 'id' twice"),
            (b"id,text\n1,a\n2,b,c\n", "line 3: 3 fields where the header has 2"),
            (b"id,text\n1,a\n2\n", "line 3: 1 field where the header has 2"),
            (b'id,text\n1,a\n2,"never\nclosed\n', "line 3: a quote is opened here and never closed"),
            (b'id,text\n1,"a" b\n', "line 2: text after a closing quote"),
            (b"id,text\n1,a\n2,a\x00b\n", "line 3: a NUL character"),
            ("id,text\n1,a\n2,żółw\n".encode("cp1250"), "line 3: byte 0xbf at offset 14 is not utf-8"),
            ("id,text\n1,a\n".encode("utf-16"), "--encoding utf-16"),
        ],
    )
    def test_refused(self, csv: Path, data: bytes, said: str) -> None:
        message = refusal(csv, data)
        assert message.startswith(str(csv))
        assert said in message

    def test_bytes_are_found_behind_multi_line_cells_and_far_into_the_file(self, csv: Path) -> None:
        good = 'text\n"a\nb"\n' + "Zażółć gęślą jaźń\n" * 20_000
        message = refusal(csv, good.encode() + b"tu \xe6\n")
        assert f"line {good.count(chr(10)) + 1}: byte 0xe6 at offset {len(good.encode()) + 3}" in message

    def test_a_column_that_is_asked_for_but_not_there(self, csv: Path) -> None:
        assert "no column 'body'; its columns are 'text'" in refusal(csv, "text\na\n", column="body")
        assert "no column 'nr', which --key-column asks for" in refusal(csv, "text\na\n", key_column="nr")

    def test_a_key_that_is_too_long(self, csv: Path) -> None:
        assert "line 2: the key is longer than 190 characters" in refusal(csv, f"id,text\n{'k' * 191},a\n", key_column="id")

    def test_an_unknown_encoding(self, csv: Path) -> None:
        assert "unknown --encoding 'klingon'" in refusal(csv, "text\na\n", encoding="klingon")
        assert "unknown --encoding 'hex'" in refusal(csv, "text\na\n", encoding="hex")


class TestJsonl:
    @pytest.mark.parametrize(
        ("row", "context"),
        [
            ('{"text": "A w sobotę?", "context": {"messages": [1]}}', {"messages": [1]}),
            ('{"text": "A w sobotę?", "id": 7, "context": {"team": "web"}}', {"id": 7, "team": "web"}),
            ('{"text": "A w sobotę?", "context": "w sklepie"}', {"context": "w sklepie"}),
        ],
    )
    def test_an_object_called_context_is_the_context_itself(self, jsonl: Path, row: str, context: dict[str, object]) -> None:
        items, _ = read(jsonl, row)
        assert json.loads(items[0].context or "") == context

    def test_the_context_key_has_a_usual_name(self, jsonl: Path) -> None:
        row = '{"msg": "A w sobotę?", "context_key": 7, "messages": [{"role": "user", "text": "hej"}]}'
        items, _ = read(jsonl, row, column="msg")
        assert items == [NewItem("A w sobotę?", None, '{"messages": [{"role": "user", "text": "hej"}]}', "7")]
        assert read(jsonl, '{"msg": "x", "context_key": "a"}')[0] == [NewItem("x", None, None, "a")]
        (item,) = read(jsonl, '{"text": "x", "context_key": "a", "who": "b"}', context_key_column="who")[0]
        assert (item.context_key, item.context) == ("b", '{"context_key": "a"}')
        assert "field 'context_key' is [1]" in refusal(jsonl, '{"text": "x", "context_key": [1]}')
        assert "NUL" in refusal(jsonl, '{"text": "x", "context_key": "a\\u0000"}')

    def test_strings_and_objects(self, jsonl: Path) -> None:
        items, skipped = read(
            jsonl, '"Ala ma kota"\n{"text": "żółw", "id": 7, "tags": ["a"]}\n\n{"text": null}\n', key_column="id"
        )
        assert items == [NewItem("Ala ma kota", None, None), NewItem("żółw", "7", '{"tags": ["a"]}')]
        assert skipped == 1

    def test_what_looks_like_a_line_end_inside_of_a_string(self, jsonl: Path) -> None:
        assert read(jsonl, '"a\u2028b\\nc"\n')[0][0].text_original == "a\u2028b\nc"

    def test_an_escaped_pair_of_surrogates_is_one_emoji(self, jsonl: Path) -> None:
        assert read(jsonl, '"\\ud83d\\ude00"\n')[0][0].text_original == "😀"

    @pytest.mark.parametrize(
        ("line", "said"),
        [
            ('{"text": "a"', "broken JSON at column 13"),
            ("tekst bez cudzysłowu", "broken JSON at column 1"),
            ('{"text": 5}', "the text must be a JSON string, but is 5"),
            ("[1, 2]", "the text must be a JSON string, but is [1, 2]"),
            ('{"body": "a"}', "has no field 'text'"),
            ('{"text": "\\ud83d"}', "\\ud83d, half of a surrogate pair"),
            ('{"text": "a", "x": "\\udc80"}', "\\udc80, half of a surrogate pair"),
            ('{"text": "a\\u0000b"}', "NUL character (\\u0000)"),
            ('{"text": "a", "x": NaN}', "NaN"),
            ('{"text": "a", "x": 1e999}', "a number that JSON does not have"),
            ('{"text": "a", "x": ' + "[" * 100_000 + "}", "nested too deeply"),
        ],
    )
    def test_refused(self, jsonl: Path, line: str, said: str) -> None:
        message = refusal(jsonl, f'{{"text": "ok"}}\n{line}\n')
        assert message.startswith(f"{jsonl}, line 2: ")
        assert said in message

    def test_empty(self, jsonl: Path) -> None:
        assert "is empty" in refusal(jsonl, "\n")


class TestTxt:
    def test_one_item_per_line_that_is_not_empty(self, tmp_path: Path) -> None:
        items, _ = read(tmp_path / "in.txt", '  Zażółć, "gęślą" \r\n\r\njaźń')
        assert [item.text_original for item in items] == ['  Zażółć, "gęślą" ', "jaźń"]

    def test_empty(self, tmp_path: Path) -> None:
        assert "is empty" in refusal(tmp_path / "in.txt", "")


def test_the_format_is_told_by_the_name() -> None:
    assert [format_of(name) for name in ("a.CSV", "b.tsv", "c.jsonl", "d.ndjson", "e.txt")] == [
        "csv",
        "csv",
        "jsonl",
        "jsonl",
        "txt",
    ]
    for name in ("-", "a.xlsx", "a"):
        with pytest.raises(UsageError, match="--format"):
            format_of(name)


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.csv"):
        with pytest.raises(UsageError, match="cannot be read"):
            RowFile.open(str(path), Layout("csv"))
