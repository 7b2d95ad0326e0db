"""Texts in other scripts and languages give a warning, and English conversations do not."""

import csv
import json

import pytest

from hbaf_edge.bundle import DEFAULT
from hbaf_edge.features import Tokeniser, text_features
from training.corpora.records import data_folder

FOREIGN = {
    "German": [
        "Ich kann nicht glauben, dass du das gemacht hast!",
        "Wir treffen uns morgen um zehn vor dem Bahnhof.",
        "Warum hast du mir nichts davon erzählt?",
        "Das Essen war wirklich lecker, vielen Dank.",
    ],
    "French": [
        "Je ne peux pas croire que tu aies fait ça !",
        "On se retrouve demain à dix heures devant la gare.",
        "Pourquoi est-ce que tu ne m'as rien dit ?",
        "Le repas était vraiment délicieux, merci beaucoup.",
    ],
    "Spanish": [
        "¡No puedo creer que hayas hecho eso!",
        "Nos vemos mañana a las diez delante de la estación.",
        "¿Por qué no me dijiste nada?",
        "La comida estaba muy rica, muchas gracias.",
    ],
    "Italian": [
        "Non posso credere che tu l'abbia fatto!",
        "Ci vediamo domani alle dieci davanti alla stazione.",
        "Perché non mi hai detto niente?",
        "Il pranzo era davvero buonissimo, grazie mille.",
    ],
    "Portuguese": [
        "Não acredito que você fez isso comigo!",
        "A gente se encontra amanhã às dez em frente à estação.",
        "Por que você não me contou nada?",
        "A comida estava muito gostosa, muito obrigado.",
    ],
    "Dutch": [
        "Ik kan niet geloven dat je dat gedaan hebt!",
        "We spreken morgen om tien uur af voor het station.",
        "Waarom heb je me daar niets over verteld?",
        "Het eten was echt heerlijk, dank je wel.",
    ],
    "Turkish": [
        "Bunu yaptığına inanamıyorum, gerçekten çok kızgınım!",
        "Yarın saat onda istasyonun önünde buluşalım.",
        "Neden bana hiçbir şey söylemedin?",
        "Yemek gerçekten çok lezzetliydi, teşekkür ederim.",
    ],
    "Polish": [
        "Nie mogę uwierzyć, że to zrobiłeś!",
        "Spotkajmy się jutro o dziesiątej przed dworcem.",
        "Dlaczego nic mi o tym nie powiedziałaś?",
        "Jedzenie było naprawdę pyszne, bardzo dziękuję.",
    ],
    "Swedish": [
        "Jag kan inte fatta att du gjorde det!",
        "Vi ses i morgon klockan tio utanför stationen.",
        "Varför har du inte berättat något för mig?",
        "Maten var verkligen jättegod, tack så mycket.",
    ],
    "Indonesian": [
        "Aku tidak percaya kamu melakukan itu!",
        "Kita bertemu besok jam sepuluh di depan stasiun.",
        "Kenapa kamu tidak bilang apa-apa kepadaku?",
        "Makanannya enak sekali, terima kasih banyak.",
    ],
    "Norwegian": [
        "Jeg kan ikke tro at du gjorde det!",
        "Vi møtes i morgen klokka ti foran stasjonen.",
        "Hvorfor har du ikke fortalt meg noe?",
        "Maten var virkelig god, tusen takk.",
    ],
    "Danish": [
        "Jeg kan ikke tro, at du gjorde det!",
        "Vi mødes i morgen klokken ti foran stationen.",
        "Hvorfor har du ikke fortalt mig noget?",
        "Maden var virkelig lækker, mange tak.",
    ],
    "Romanian": [
        "Nu pot să cred că ai făcut asta!",
        "Ne vedem mâine la zece în fața gării.",
        "De ce nu mi-ai spus nimic?",
        "Mâncarea a fost foarte bună, mulțumesc mult.",
    ],
    "Finnish": [
        "En voi uskoa, että sinä teit sen!",
        "Tavataan huomenna kello kymmenen aseman edessä.",
        "Miksi sinä et kertonut minulle mitään?",
        "Ruoka oli todella hyvää, kiitos paljon.",
    ],
    "Hungarian": [
        "Nem hiszem el, hogy ezt tetted velem!",
        "Holnap tízkor találkozunk az állomás előtt.",
        "Miért nem mondtál nekem erről semmit?",
        "Az ebéd nagyon finom volt, köszönöm szépen.",
    ],
    "Czech": [
        "Nemůžu uvěřit, že jsi to udělal!",
        "Sejdeme se zítra v deset před nádražím.",
        "Proč jsi mi o tom nic neřekla?",
        "To jídlo bylo opravdu výborné, moc děkuju.",
    ],
    "Vietnamese": [
        "Tôi không thể tin là bạn đã làm điều đó!",
        "Chúng ta gặp nhau lúc mười giờ sáng mai trước nhà ga.",
        "Tại sao bạn không nói gì với tôi?",
        "Món ăn rất ngon, cảm ơn nhiều nhé.",
    ],
    "Tagalog": [
        "Hindi ako makapaniwala na ginawa mo iyon!",
        "Magkita tayo bukas ng alas diyes sa harap ng istasyon.",
        "Bakit wala kang sinabi sa akin?",
        "Ang sarap talaga ng pagkain, maraming salamat.",
    ],
    "Swahili": [
        "Siamini kwamba umenifanyia jambo hilo leo!",
        "Tutaonana kesho saa nne mbele ya kituo cha treni.",
        "Kwa nini hukuniambia chochote kuhusu hilo?",
        "Chakula kilikuwa kitamu sana, asante sana.",
    ],
}

SCRIPTS = {
    "Arabic": "لا أصدق أنك فعلت ذلك",
    "Bengali": "আমি বিশ্বাস করতে পারছি না",
    "Chinese": "我不敢相信你做了这件事",
    "Georgian": "არ მჯერა, რომ ეს გააკეთე",
    "Greek": "Δεν το πιστεύω ότι το έκανες",
    "Hebrew": "אני לא מאמין שעשית את זה",
    "Hindi": "मुझे विश्वास नहीं होता",
    "Japanese": "そんなことをしたなんて信じられない",
    "Korean": "네가 그랬다니 믿을 수 없어",
    "Russian": "Не могу поверить, что ты это сделал",
    "Tamil": "என்னால் நம்ப முடியவில்லை",
    "Thai": "ไม่อยากเชื่อว่าคุณทำแบบนั้น",
}
ENGLISH = [
    "WHAT THE HELL IS THIS",
    "Beyoncé and José went to the café.",
    "Ooooooh myyyy goooooosh!",
    "Nooooo! Noooooooo! Aaaaargh!",
    "Mamma mia, that pepperoni pizza!",
    "Hasta la vista, baby!",
    "C'est la vie.",
    "Voilà!",
    "Guten Morgen!",
    "Ross Geller, Monica Geller, Chandler Bing, Phoebe Buffay",
    "Supercalifragilisticexpialidocious is a word",
    "Dr. Krzyzewski's hydroxychloroquine prescription expired",
    "hmm mhm uh-huh",
    "Ha ha ha ha. La la la la.",
    "I said 你好 to him",
    "1234",
    "?!",
]


@pytest.fixture(scope="module")
def has_warning():
    """Text -> whether the warning says that it is not English."""
    tokeniser = Tokeniser((DEFAULT / "tokenizer.json").read_bytes())
    return lambda text: any("not to be English" in w or "not in Latin" in w for w in text_features(text, tokeniser)[1])


@pytest.mark.parametrize("language", FOREIGN)
def test_sentences_of_other_languages_give_a_warning(language, has_warning):
    assert all(map(has_warning, FOREIGN[language]))
    assert all(has_warning(sentence.upper()) for sentence in FOREIGN[language][:2])


@pytest.mark.parametrize("script", SCRIPTS)
def test_text_of_other_scripts_gives_a_warning_even_if_short(script, has_warning):
    assert has_warning(SCRIPTS[script])
    assert has_warning(SCRIPTS[script].split()[0][:2])
    assert has_warning(f"Anna {SCRIPTS[script]}")


@pytest.mark.parametrize("text", ENGLISH)
def test_english_gives_no_warning(text, has_warning):
    assert not has_warning(text)


@pytest.mark.slow
@pytest.mark.data
def test_english_corpora_give_almost_no_warnings(has_warning):
    """One MELD utterance of 13,708 and one DailyTalk utterance of 23,759; the limit is 0.3 %."""
    for split, allowed in (("dev", 0), ("test", 0), ("train", 1)):
        with open(data_folder() / "meld" / f"{split}_sent_emo.csv", encoding="utf-8") as file:
            texts = [row["Utterance"] for row in csv.DictReader(file)]
        assert sum(map(has_warning, texts)) <= allowed
    with open(data_folder() / "dailytalk" / "dialogues.jsonl", encoding="utf-8") as file:
        texts = [turn["text"] for line in file for turn in json.loads(line)["utterances"]]
    assert sum(map(has_warning, texts)) <= 1


def test_a_text_gives_only_one_language_warning():
    tokeniser = Tokeniser((DEFAULT / "tokenizer.json").read_bytes())
    assert len(text_features("你好吗", tokeniser)[1]) == 1
    assert text_features("🦄", tokeniser)[1] == (
        "the text encoder knows no piece of this text; it reads English words",
    )
