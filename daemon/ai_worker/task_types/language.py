"""Names of languages, and a cautious guess at the language of a text.

The guess is made from scripts, frequent function words and letters that one language alone has. A statistical detector would
know more languages (py3langid brings numpy with it, lingua is 96 MB), but it has an answer for every text, a part number
included. Here a wrong guess throws away an answer that was paid for, so "cannot tell" is what short or mixed texts must get.
"""

from __future__ import annotations

import re
from collections import Counter

_ISO_639_1 = """\
aa Afar|ab Abkhazian|ae Avestan|af Afrikaans|ak Akan|am Amharic|an Aragonese|ar Arabic|as Assamese|av Avaric|ay Aymara|
az Azerbaijani|ba Bashkir|be Belarusian|bg Bulgarian|bi Bislama|bm Bambara|bn Bengali|bo Tibetan|br Breton|bs Bosnian|
ca Catalan|ce Chechen|ch Chamorro|co Corsican|cr Cree|cs Czech|cu Church Slavic|cv Chuvash|cy Welsh|da Danish|de German|
dv Divehi|dz Dzongkha|ee Ewe|el Greek|en English|eo Esperanto|es Spanish|et Estonian|eu Basque|fa Persian|ff Fulah|fi Finnish|
fj Fijian|fo Faroese|fr French|fy Western Frisian|ga Irish|gd Scottish Gaelic|gl Galician|gn Guarani|gu Gujarati|gv Manx|
ha Hausa|he Hebrew|hi Hindi|ho Hiri Motu|hr Croatian|ht Haitian Creole|hu Hungarian|hy Armenian|hz Herero|ia Interlingua|
id Indonesian|ie Interlingue|ig Igbo|ii Sichuan Yi|ik Inupiaq|io Ido|is Icelandic|it Italian|iu Inuktitut|ja Japanese|
jv Javanese|ka Georgian|kg Kongo|ki Kikuyu|kj Kuanyama|kk Kazakh|kl Kalaallisut|km Khmer|kn Kannada|ko Korean|kr Kanuri|
ks Kashmiri|ku Kurdish|kv Komi|kw Cornish|ky Kyrgyz|la Latin|lb Luxembourgish|lg Ganda|li Limburgish|ln Lingala|lo Lao|
lt Lithuanian|lu Luba-Katanga|lv Latvian|mg Malagasy|mh Marshallese|mi Maori|mk Macedonian|ml Malayalam|mn Mongolian|
mr Marathi|ms Malay|mt Maltese|my Burmese|na Nauru|nb Norwegian Bokmål|nd North Ndebele|ne Nepali|ng Ndonga|nl Dutch|
nn Norwegian Nynorsk|no Norwegian|nr South Ndebele|nv Navajo|ny Chichewa|oc Occitan|oj Ojibwa|om Oromo|or Odia|os Ossetian|
pa Punjabi|pi Pali|pl Polish|ps Pashto|pt Portuguese|qu Quechua|rm Romansh|rn Rundi|ro Romanian|ru Russian|rw Kinyarwanda|
sa Sanskrit|sc Sardinian|sd Sindhi|se Northern Sami|sg Sango|si Sinhala|sk Slovak|sl Slovenian|sm Samoan|sn Shona|so Somali|
sq Albanian|sr Serbian|ss Swati|st Southern Sotho|su Sundanese|sv Swedish|sw Swahili|ta Tamil|te Telugu|tg Tajik|th Thai|
ti Tigrinya|tk Turkmen|tl Tagalog|tn Tswana|to Tongan|tr Turkish|ts Tsonga|tt Tatar|tw Twi|ty Tahitian|ug Uyghur|uk Ukrainian|
ur Urdu|uz Uzbek|ve Venda|vi Vietnamese|vo Volapük|wa Walloon|wo Wolof|xh Xhosa|yi Yiddish|yo Yoruba|za Zhuang|zh Chinese|
zu Zulu"""
_NAMES = dict(entry.split(" ", 1) for entry in _ISO_639_1.replace("\n", "").split("|"))
_CODES = {name.casefold(): code for code, name in _NAMES.items()} | {
    "polski": "pl", "angielski": "en", "niemiecki": "de", "francuski": "fr", "hiszpański": "es", "włoski": "it", "rosyjski": "ru",
    "ukraiński": "uk", "czeski": "cs", "słowacki": "sk", "deutsch": "de", "français": "fr", "español": "es", "castellano": "es",
    "italiano": "it", "português": "pt", "nederlands": "nl", "čeština": "cs", "slovenčina": "sk",
    "українська": "uk", "русский": "ru", "svenska": "sv", "dansk": "da", "norsk": "no", "suomi": "fi", "magyar": "hu",
    "română": "ro", "türkçe": "tr", "ελληνικά": "el", "العربية": "ar", "עברית": "he", "中文": "zh", "日本語": "ja",
    "한국어": "ko", "ไทย": "th", "हिन्दी": "hi", "mandarin": "zh", "farsi": "fa",
}  # fmt: skip
_CODE = re.compile(r"([A-Za-z]{2,3})((?:[-_][A-Za-z0-9]{2,8})*)")  # the part of BCP 47 that people use: language, script, region

_FUNCTION_WORDS = {
    "en": "the of and to in is that it was for on are as with his they at be this have from or had by but what were we when "
    "your can said there an which she do their if will how about them then would like so these her make him has could "
    "been did my you me not he i",
    "pl": "w i na z do się nie że to jest o jak za od po co ale czy dla przez tak już był była było są przy lub oraz może tylko "
    "jego jej ich ten ta te tego tym który która które żeby gdy bardzo mnie mi ja ty my wy pan pani jeszcze też sie ze "
    "jestem mam być bo pod nad",
    "de": "der die und in den von zu das mit sich des auf für ist im dem nicht ein eine als auch es an werden aus er hat dass "
    "sie nach wird bei einer um am sind noch wie einem über einen so zum war haben nur oder aber vor zur bis mehr durch "
    "ich wir ihr mein du man kann",
    "fr": "de la le et les des en un du une que est pour qui dans par plus pas au sur ne se ce il sont avec ou son aux mais "
    "comme nous vous je elle cette ont été sa ses leur leurs être fait tout on si tu mon ma mes très sans même où",
    "es": "de la que el en y a los se del las un por con no una su para es al lo como más pero sus le ya o este sí porque esta "
    "entre cuando muy sin sobre también me hasta hay donde quien desde todo nos durante yo fue son está mi tu era han",
    "it": "di e il la che in un per è non una sono del con si da come le dei ma al gli anche più della nel alla lo ci questo ha "
    "o se i mi delle dal quando molto io tu suo sua era perché ho hanno essere tutto noi",
    "pt": "de a o que e do da em um para é com não uma os no se na por mais as dos como mas foi ao ele das tem à seu sua ou ser "
    "quando muito há nos já está eu também só pelo pela até isso ela entre era você meu minha",
    "nl": "de van het een en in is dat op te zijn met voor niet aan er om ook als dan maar bij nog uit wordt door naar heeft "
    "hij ze wat deze over je ik wij worden kan geen tot was zo dit mijn hun",
    "cs": "a se v na je že o s z do i to k ve pro za by ale si po jako podle od jeho které který která jsem jsme jsou být byl "
    "bylo tak jen už při také nebo až než před co kdy aby není jsi mi však",
    "sk": "a v sa na je že o s z do aj to k vo pre za by ale si po ako podľa od jeho ktoré ktorý ktorá som sme sú byť bol bolo "
    "tak len už pri tiež alebo až než pred čo keď aby nie mi však ešte",
    "ro": "de și în a la cu pe nu un o este să din care mai pentru ce că se au fi sunt dar după fost lui sau ca prin când le am "
    "ai el ea această acest foarte ne îi eu despre fără dacă",
    "hu": "a az és hogy nem is egy ez van meg csak mint de volt ha már még azt el le ki be én te ő mi ezt lehet lesz vagy "
    "minden nagyon után kell amely amit itt ott nincs",
    "sv": "och i att det som en på är av för med till den har de inte om ett han men var jag sig från vi så kan när år säger "
    "hon under också efter eller nu sin där vid mot ska skulle",
    "da": "og i at det er en til af på for med den de som har ikke et han der var jeg sig fra vi så kan når men hun også efter "
    "eller nu sin om ved mod skal skulle af blev",
    "no": "og i at det er en til av på for med den de som har ikke et han der var jeg seg fra vi så kan når men hun også etter "
    "eller nå sin om ved mot skal skulle ble",
    "fi": "ja on ei se että oli hän ovat mutta kun niin joka myös jos tai ole olen minä sinä he me tämä mitä vain kuin hänen "
    "sen nyt kanssa siitä ollut jo vielä",
    "tr": "ve bir bu da de için ile çok ne o daha gibi var ama kadar olarak sonra ben sen en olan değil mi her ki şey ya biz "
    "onun diye oldu nasıl yok",
}  # fmt: skip
_WORD_LANGUAGES: dict[str, list[str]] = {}
for _language, _words in _FUNCTION_WORDS.items():
    for _word in set(_words.split()):
        _WORD_LANGUAGES.setdefault(_word, []).append(_language)
# Letters that, among the languages above, one alone has.
_LETTER_LANGUAGES = {letter: language for language, letters in {
    "pl": "ąęłśźżćń", "de": "ß", "fr": "œ", "es": "ñ¿¡", "pt": "ãõ", "cs": "řěů", "sk": "ľĺŕ", "ro": "șță", "hu": "őű",
    "tr": "ğı",
}.items() for letter in letters}  # fmt: skip
# Which of these it is, a guess by function words cannot say for sure.
_ALIKE = [frozenset(group.split()) for group in ("cs sk", "da no nb nn", "es gl ca", "pt gl", "it co", "nl af", "fr oc")]

_LETTERS = re.compile(r"[^\W\d_]+")
_SPECIAL_LETTERS = re.compile(f"[{''.join(_LETTER_LANGUAGES)}]")
_SCRIPTS = [
    (re.compile(f"[{span}]"), frozenset(languages.split()))
    for span, languages in (
        ("\u0400-\u052f", "ru uk be bg sr mk kk ky tg mn tt ba cv ce os uz az kv ab av cu"),
        ("\u3040-\u30ff", "ja"),  # before Han: Japanese has both
        ("\u3400-\u9fff", "zh ja ko yue wuu"),
        ("\uac00-\ud7af", "ko"),
        ("\u0370-\u03ff\u1f00-\u1fff", "el grc"),
        ("\u0590-\u05ff", "he yi"),
        ("\u0600-\u06ff", "ar fa ur ps ckb ku ug sd ks az"),
        ("\u0900-\u097f", "hi mr ne sa"),
        ("\u0e00-\u0e7f", "th"),
    )
]
_RUSSIAN, _UKRAINIAN, _OTHER_CYRILLIC = re.compile("[ыэё]"), re.compile("[іїєґ]"), re.compile("[ўђћљњџјқңғүұһөәѓќѕ]")


def language_code(language: str) -> str | None:
    """The ISO 639 code, lower case, of a code (`pl`, `pt-BR`) or a name (`Polish`, `polski`); None if unknown."""
    language = language.strip()
    known = _CODES.get(language.casefold())
    if known:
        return known
    match = _CODE.fullmatch(language)
    if not match:
        return None
    code = match[1].lower()
    return code if code in _NAMES or (len(code) == 3 and language == language.lower()) else None


def language_tag(language: str) -> str:
    """A name or code in the one way it is kept: `pl` for `Polish`, `pt-BR` for `pt_BR`; anything unknown as it is."""
    language = language.strip()
    code = _CODES.get(language.casefold())
    if code:
        return code
    match = _CODE.fullmatch(language)
    return f"{match[1].lower()}{match[2].replace('_', '-')}" if match and match[1].lower() in _NAMES else language


def language_name(language: str) -> str:
    """The language in words for a model: `Polish` for `pl`, `Portuguese (pt-BR)` for `pt_BR`; anything unknown as it is."""
    tag = language_tag(language)
    code, dash, _ = tag.partition("-")
    if code not in _NAMES:
        return tag
    return f"{_NAMES[code]} ({tag})" if dash else _NAMES[code]


def possible_languages(text: str) -> frozenset[str] | None:
    """The ISO 639 codes of the languages that `text` may be in; None where it cannot be told.

    Looks at the first 4,000 characters. Texts of fewer than 20 letters cannot be told, but for ones in a script of few languages.
    """
    sample = text[:4000].lower()
    found = _LETTERS.findall(sample)
    letters = sum(map(len, found))
    if not sample.isascii():
        by_script = _by_script(sample, letters)
        if by_script:
            return by_script
    if letters < 20:
        return None
    return _by_words(found, sample)


def _by_script(sample: str, letters: int) -> frozenset[str] | None:
    for script, languages in _SCRIPTS:
        count = len(script.findall(sample))
        if count < 8 or count < 0.6 * letters * (0.2 if languages == {"ja"} else 1):
            continue
        if "ru" in languages and letters >= 20 and not _OTHER_CYRILLIC.search(sample):
            russian, ukrainian = bool(_RUSSIAN.search(sample)), bool(_UKRAINIAN.search(sample))
            if russian != ukrainian:
                return frozenset(["ru"]) if russian else frozenset(["uk"])
        return languages
    return None


def _by_words(found: list[str], sample: str) -> frozenset[str] | None:
    score: Counter[str] = Counter()
    for word in found:
        for language in _WORD_LANGUAGES.get(word, ()):
            score[language] += 1
    if not sample.isascii():
        for letter in _SPECIAL_LETTERS.findall(sample):
            score[_LETTER_LANGUAGES[letter]] += 1
    if not score:
        return None
    (_, best), *_others = score.most_common(1)
    if best < 3 or best < 0.2 * len(found):
        return None
    close = {language for language, hits in score.items() if 2 * hits > best}
    for group in _ALIKE:
        if close & group:
            close |= group
    return frozenset(close)
