"""The offline provider corrects real mistakes and touches nothing else."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ai_worker.errors import ConfigurationError, InvalidRequest, ModelUnknown
from ai_worker.models import NO_USAGE, Completion, Prompt
from ai_worker.providers import ProviderConfig, _proofread, _spelling, provider_class
from ai_worker.providers._proofread import proofread
from ai_worker.providers.offline import OfflineProvider

ENGLISH = [
    ("I definately recieve alot of emails from teh goverment.", "I definitely receive a lot of emails from the government."),
    ("She could of told me that the the enviroment is important.", "She could have told me that the environment is important."),
    ("i think its a good idea, dont you?", "I think it's a good idea, don't you?"),
    ("The wether was realy nice yesterday.", "The weather was really nice yesterday."),
    ("My freind's car is beutiful.", "My friend's car is beautiful."),
    ("I dont know wether he has recieved the adress.", "I don't know whether he has received the address."),
    ("The hotel accomodation was excelent but expensive.", "The hotel accommodation was excellent but expensive."),
    ("He dosen't want to go too school becuase he is sick.", "He doesn't want to go too school because he is sick."),
    ("Unfortunatly the packege was damaged.", "Unfortunately the package was damaged."),
    ("There are many diffrent oppinions about this topic.", "There are many different opinions about this topic."),
    ("The restaurant was definitly worth visitting.", "The restaurant was definitely worth visiting."),
    ("I beleive that knowlege is neccessary for succes.", "I believe that knowledge is necessary for success."),
    ("It occured to me that thier house is seperate.", "It occurred to me that their house is separate."),
    ("Plese contact our custumer service departement.", "Please contact our customer service department."),
    ("The calender on the wall is from last year.", "The calendar on the wall is from last year."),
    ("He was embarassed by his speach.", "He was embarrassed by his speech."),
    ("The comittee will anounce its desicion soon.", "The committee will announce its decision soon."),
    ("You should of seen it, it was truely wonderfull.", "You should have seen it, it was truly wonderful."),
    ("The wheather forcast says it will rain.", "The weather forecast says it will rain."),
    ("We are looking foward to hearing from you.", "We are looking forward to hearing from you."),
    ("This product dosnt work as advertized.", "This product doesn't work as advertised."),
    ("Im sure thats not a problem.", "I'm sure that's not a problem."),
    ("I have been studing english for two years.", "I have been studying English for two years."),
    ("The childen are playing in the gardn.", "The children are playing in the garden."),
    ("What is the diference between a and an?", "What is the difference between a and an?"),
    ("I like swiming and runing.", "I like swimming and running."),
    ("Can you reccomend a good resturant near here?", "Can you recommend a good restaurant near here?"),
    (
        "The goverment should protect the enviroment for futur generations.",
        "The government should protect the environment for future generations.",
    ),
    ("Mr. Smyth said that Ioannidis will arive on monday.", "Mr. Smyth said that Ioannidis will arrive on Monday."),
]

POLISH = [
    ("Wogóle nie wiem, napewno przyjde jutro spowrotem.", "W ogóle nie wiem, na pewno przyjdę jutro z powrotem."),
    ("Żeka jest bardzo gleboka, a ksiazka lezy na stole.", "Rzeka jest bardzo głęboka, a książka leży na stole."),
    ("Niewiem gdzie sa moje klucze, wiec szukam.", "Nie wiem gdzie są moje klucze, więc szukam."),
    ("Zrobilem to poprostu dlatego ze chcialbym odpoczac.", "Zrobiłem to po prostu dlatego że chciałbym odpocząć."),
    ("Dzień dobry, chciałbym zwrucić towar.", "Dzień dobry, chciałbym zwrócić towar."),
    ("Proszę o pszesłanie faktury na mój adres.", "Proszę o przesłanie faktury na mój adres."),
    ("Niestety nie dostałem jeszcze żadnej odpowiedźi.", "Niestety nie dostałem jeszcze żadnej odpowiedzi."),
    ("Bardzo mi sie podoba ten samochut.", "Bardzo mi się podoba ten samochód."),
    ("W sobote jedziemy na wycieczke do Krakowa.", "W sobotę jedziemy na wycieczkę do Krakowa."),
    ("To jest najleprzy sklep w mieście.", "To jest najlepszy sklep w mieście."),
    ("Moja żona ma urodziny w pażdzierniku.", "Moja żona ma urodziny w październiku."),
    ("Nie moge znaleść swojego paszportu.", "Nie mogę znaleźć swojego paszportu."),
    ("Pani Kowalska poszła do do sklepu.", "Pani Kowalska poszła do sklepu."),
    ("Musimy porozmawiać o tym spodkaniu.", "Musimy porozmawiać o tym spotkaniu."),
    ("Dziękuje za szypką odpowiedź.", "Dziękuje za szybką odpowiedź."),
    ("Czy mógłby mi pan pomuc?", "Czy mógłby mi pan pomóc?"),
    ("Ten film jest naprawde bardzo ciekawy.", "Ten film jest naprawdę bardzo ciekawy."),
    ("Kazdy człowiek ma swoje mażenia.", "Każdy człowiek ma swoje marzenia."),
    ("Z tąd jest blisko do domu.", "Stąd jest blisko do domu."),
    ("Po mimo deszczu poszliśmy na spacer.", "Pomimo deszczu poszliśmy na spacer."),
    ("Oglondałem wczoraj ciekawy program w telewizi.", "Oglądałem wczoraj ciekawy program w telewizji."),
    ("Zapraszamy do naszej nowej restauracij.", "Zapraszamy do naszej nowej restauracji."),
    ("Mam nadzieje, że wszystko będzie dobrze.", "Mam nadzieję, że wszystko będzie dobrze."),
    ("On zawsze muwi prawdę.", "On zawsze mówi prawdę."),
    ("Zostawiłem klucze w domó.", "Zostawiłem klucze w domu."),
    ("Przyszłem za puźno i nikogo niebyło.", "Przyszedłem za późno i nikogo nie było."),
    ("Nie ma to tamto, trzeba wziąść się do roboty.", "Nie ma to tamto, trzeba wziąć się do roboty."),
    ("Prosze przyslac mi fakture jak najszybciej.", "Proszę przysłać mi fakturę jak najszybciej."),
    ("Zamowilem buty tydzien temu i nadal nie przyszly.", "Zamówiłem buty tydzień temu i nadal nie przyszły."),
    ("Kurier uszkodzil paczke, co mam zrobic?", "Kurier uszkodził paczkę, co mam zrobić?"),
    ("Obsługa była miła, alę jedzenie zimne.", "Obsługa była miła, ale jedzenie zimne."),
    ("Rzułty rower stoi przed sklepem.", "Żółty rower stoi przed sklepem."),
    ("Hłopak jechał rowerem przez las.", "Chłopak jechał rowerem przez las."),
    ("Wieczorem oglądaliśmy gwiazdy na niebje.", "Wieczorem oglądaliśmy gwiazdy na niebie."),
    ("Oglondałem wczoraj telewizję.", "Oglądałem wczoraj telewizję."),
]

# Names, addresses, code, markup, placeholders, other languages, things meant.
UNCHANGED = [
    "",
    " ",
    "\n\t ",
    "?",
    "ok",
    "Ok.",
    "…",
    "A",
    "Barack Obama met Wołodymyr Zełenski in Przemyśl; Kowalczykowski and McAllister waved.",
    "Visit https://exmaple.com/recieve?teh=1 or www.wogole.pl, mail teh.recieve@example.com.",
    "Run `git chekout -b fature` and ```pyton\\nprnt(x)\\n``` then stop.",
    '<p class="recieve">The house is big.</p><!-- teh --><code>recieve</code> &nbsp;',
    "Hello {naem}, you owe %s to %(usr)s and {{ custmer }} for ${itme}.",
    "@teh_user wrote about #recieve and #wogóle today.",
    "The NASA and UNESCO teams use iPhone, macOS and PyTorch.",
    "The price is 12,50 zł, i.e. 3.20 EUR (10% off) at 18:30 on 2024-05-01.",
    "😀 🎉 👩\u200d👩\u200d👧",
    "Ich habe gestern ein gutes Buch gelesen und es war sehr schön.",
    "Je ne sais pas où est la bibliothèque, mais je vais la chercher.",
    "El perro está durmiendo en la cocina porque hace mucho calor.",
    "Яка сьогодні погода у Києві?",
    "日本語のテキストです。",
    "Na meetingu ustaliliśmy deadline i feedback, a potem był lunch.",
    "The Polish word „źdźbło” means a blade of grass.",
    "He had had enough, and that that is, is.",
    "Było bardzo bardzo zimno, hahaha, noooo.",
    "Zażółć gęślą jaźń, pchnąć w tę łódź jeża lub ośm skrzyń fig.",
    "Open C:\\Users\\jan\\plki\\wogole.txt or /etc/recieve/teh.conf.",
    "I could of course come tomorrow.",
    "It’s the company’s “well-known” e-mail address…",
    "Książka Kennedy'ego leży obok biało-czerwonej flagi.",
    "Ola Wójcik-Nowakowska pracuje w PKO BP od poniedziałku.",
    "THIS IS ALL WRITEN IN CAPITALS, AND WOGÓLE TOO.",
    "The function mmap(adres) and parseHtmlTeg stay.",
    "He wrote: teh_value = recieve2 and C3PO.",
    "  Two  spaces,\tand a tab\r\nstay as they are \n\n",
    "Firma dziękuje za zaufanie.",
    "pi\xadsow\xadnia with soft hyphens is left alone in the house of words.",
]

_SCHEMA = {
    "type": "object",
    "properties": {"corrected": {"type": "string"}, "summary": {"type": "string"}},
    "required": ["corrected", "summary"],
    "additionalProperties": False,
}


def _prompt(text: str, task_type: str = "correction") -> Prompt:
    return Prompt("Correct.", f"<text>{text}</text>", _SCHEMA, "correction", text, "corrected", task_type)


def _complete(text: str, **options: Any) -> Completion:
    async def call() -> Completion:
        provider = OfflineProvider(ProviderConfig("spelling", options=options))
        try:
            return await provider.complete(_prompt(text))
        finally:
            await provider.aclose()

    return asyncio.run(call())


@pytest.mark.parametrize(("wrong", "right"), [*ENGLISH, *POLISH])
def test_corrects(wrong: str, right: str) -> None:
    assert proofread(wrong) == right


@pytest.mark.parametrize("right", [right for _, right in [*ENGLISH, *POLISH]])
def test_leaves_what_is_right(right: str) -> None:
    assert proofread(right) == right


@pytest.mark.parametrize("text", UNCHANGED)
def test_leaves_alone(text: str) -> None:
    assert proofread(text) == text


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("Napewno przyjde. napewno!", "Na pewno przyjdę. na pewno!"),
        ("It’s definately the neighbor’s, isnt it?", "It’s definitely the neighbor’s, isn’t it?"),
        ("The well-knwon house of the childen’s doctor", "The well-known house of the children’s doctor"),
        (
            "Please  recieve\tit at `recieve`,  see http://a.pl/recieve now",
            "Please  receive\tit at `recieve`,  see http://a.pl/recieve now",
        ),
        ("Hello {recieve}, <b>we recieve</b> %s the the parcel.", "Hello {recieve}, <b>we receive</b> %s the parcel."),
        ("On z\u0307yje i napewno wróci", "On z\u0307yje i na pewno wróci"),
        ("ksiazka", "książka"),
        ("recieve", "receive"),
    ],
)
def test_keeps_case_spaces_apostrophes_and_what_is_not_text(wrong: str, right: str) -> None:
    assert proofread(wrong) == right


def test_the_language_may_be_fixed() -> None:
    assert json.loads(_complete("ksiazka recieve", language="en").text)["corrected"] == "ksiazka receive"
    assert json.loads(_complete("ksiazka recieve", language="pl").text)["corrected"] == "książka recieve"


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(codec="utf-8"), max_size=80), st.sampled_from(["auto", "en", "pl"]))
def test_any_text_keeps_its_other_characters_in_order(text: str, language: _proofread.LanguageChoice) -> None:
    def others(text: str) -> str:
        return re.sub(r"[^\W_]|[\s'’-]|[\u0300-\u036f]", "", text)

    corrected = proofread(text, language)
    assert others(corrected) == others(text)
    assert re.findall(r"\d", corrected) == re.findall(r"\d", text)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["teh", " ", "`", "{", "}}", "<", ">", "the the", "wogóle", "``" + "`", "%", "@", "http://", "’", "\n", "-", "i"]
        )
    )
)
def test_any_mixture_of_markup_keeps_its_other_characters_in_order(parts: list[str]) -> None:
    text = "".join(parts)
    assert re.sub(r"[\w\s'’-]", "", proofread(text, "en")) == re.sub(r"[\w\s'’-]", "", text)


@pytest.mark.parametrize(
    "hostile", ["{{", "<a ", "<code>", "`", "```", "a-", "a'", "a.", "%(", "](", "a@", "/a", "ab", "ż", "\u0301", "f(", "<!--"]
)
def test_a_hostile_text_costs_linear_time(hostile: str) -> None:
    started = time.process_time()
    proofread(hostile * 20_000, "pl")
    assert time.process_time() - started < 10


def test_the_answer_fits_the_schema_and_costs_nothing() -> None:
    completion = _complete("Napewno przyjdę.")
    assert json.loads(completion.text) == {"corrected": "Na pewno przyjdę.", "summary": ""}
    assert (completion.usage, completion.finish, completion.model) == (NO_USAGE, "stop", "offline")
    assert provider_class("offline") is OfflineProvider


def test_other_task_types_are_refused_with_a_way_out() -> None:
    provider = OfflineProvider(ProviderConfig("spelling"))
    with pytest.raises(
        InvalidRequest, match=r"'correction' only, not 'translation'; use a model of the provider 'openai' or 'gemini'"
    ):
        asyncio.run(provider.complete(_prompt("Ala ma kota", "translation")))


def test_a_missing_dictionary_stops_the_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _spelling.speller.cache_clear()
    monkeypatch.setattr(_spelling, "_DATA", tmp_path)
    with pytest.raises(ModelUnknown, match=r"dictionaries cannot be loaded.*reinstall"):
        _complete("Napewno przyjdę.")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lang": "pl"}, "unknown option 'lang'; known ones: language"),
        ({"language": "de"}, "'language' must be one of auto, en, pl"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        OfflineProvider(ProviderConfig("spelling", options=options))


def test_the_loop_goes_on_while_many_texts_are_corrected() -> None:
    """Unknown words cost tens of milliseconds each; none of that is spent in the loop's thread."""
    proofread("wogóle the teh")  # loads the dictionaries
    slow = "Nieznany wyraz przeszkatzający " + " ".join(f"zagmatfan{letter}nościoffany" for letter in "bcdfghjkl")

    async def longest_pause() -> tuple[float, list[Completion]]:
        provider = OfflineProvider(ProviderConfig("spelling"))
        calls = asyncio.gather(*(provider.complete(_prompt(f"{slow} {number}")) for number in range(20)))
        pause = 0.0
        while not calls.done():
            before = time.perf_counter()
            await asyncio.sleep(0)
            pause = max(pause, time.perf_counter() - before)
        await provider.aclose()
        return pause, await calls

    pause, completions = asyncio.run(longest_pause())
    assert len(completions) == 20
    assert pause < 1.0  # the work as a whole takes longer; a busy machine may hold a thread up


def test_several_threads_may_correct_at_once() -> None:
    wrong, right = zip(*(ENGLISH + POLISH), strict=True)
    results: list[list[str]] = []
    threads = [threading.Thread(target=lambda: results.append([proofread(text) for text in wrong])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [list(right)] * 4
