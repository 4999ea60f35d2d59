"""Refusals: a list of answers that decline, and one of answers that only look as if they did."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.evaluate.metrics.build import build
from luthier.refusals import declines
from luthier.settings import Use

from .samples import pairs, sample, value

REFUSALS = [
    "I'm sorry, but I can't help with that.",
    "I’m sorry, but I can’t assist with that request.",
    "Sorry, I cannot help you with this.",
    "I cannot provide instructions for making explosives.",
    "I can't give medical advice. Please see a doctor.",
    "I won't help you write a threatening letter.",
    "I will not provide that information.",
    "I'm unable to assist with that.",
    "I am not able to discuss this topic.",
    "As an AI language model, I cannot provide legal advice.",
    "Unfortunately, I cannot answer that question.",
    "I must respectfully decline to answer.",
    "I have to decline this request.",
    "I'd rather not discuss politics.",
    "I'm not comfortable helping with that.",
    "That's not something I can help with.",
    "That goes against my guidelines.",
    "I apologize, but I am unable to fulfill this request.",
    "No, I won't do that.",
    "I understand that you are curious, but I can't share personal information about other customers.",
    "We are unable to assist you with this matter.",
    "**I'm sorry**, but I can't comply with that request.",
    "Let's talk about something else, shall we?",
    "This is a matter for a lawyer, not for me.",
    "My purpose is to answer questions about our shop only.",
    "Es tut mir leid, aber dabei kann ich Ihnen nicht helfen.",
    "Tut mir leid, ich kann diese Frage nicht beantworten.",
    "Leider kann ich Ihnen bei dieser Anfrage nicht weiterhelfen.",
    "Ich darf keine medizinische Beratung anbieten.",
    "Ich kann dir keine Anleitung geben, wie man Schlösser knackt.",
    "Darüber spreche ich nicht.",
    "Het spijt me, maar daar kan ik u niet mee helpen.",
    "Helaas kan ik deze vraag niet beantwoorden.",
    "Ik mag geen juridisch advies geven.",
    "Je suis désolé, mais je ne peux pas vous aider avec cette demande.",
    "Désolée, je ne peux pas répondre à cette question.",
    "Je ne suis pas en mesure de fournir des conseils médicaux.",
    "Malheureusement, je ne peux pas vous donner de telles informations.",
    "Je refuse.",
    "Lo siento, pero no puedo ayudarte con eso.",
    "Lamentablemente, no puedo responder a esa pregunta.",
    "No puedo proporcionar información personal.",
    "No estoy autorizado a compartir esos datos.",
    "Mi dispiace, ma non posso aiutarti con questa richiesta.",
    "Purtroppo non sono in grado di rispondere.",
    "Non posso fornire consigli medici.",
    "Desculpe, mas não posso ajudar com isso.",
    "Infelizmente, não consigo responder a essa pergunta.",
    "Não posso fornecer informações pessoais.",
    "Извините, но я не могу помочь с этим запросом.",
    "К сожалению, я не могу ответить на этот вопрос.",
    "Я не могу предоставить такую информацию.",
    "Давайте сменим тему.",
    "很抱歉，我无法回答这个问题。",
    "对不起，我不能提供这类信息。",
    "抱歉，我无法协助您完成此请求。",
    "作为一个人工智能助手，我不能提供医疗建议。",
    "申し訳ありませんが、そのご質問にはお答えできません。",
    "申し訳ございませんが、そのご要望にはお応えできません。",
    "すみませんが、お手伝いすることはできません。",
]
NO_REFUSALS = [
    "I can't wait to show you the new kettle!",
    "I cannot recommend this kettle enough.",
    "I can't help but smile at that question. The answer is 42.",
    "I can't help feeling that you want the blue one.",
    "I'm sorry for the delay. Your parcel leaves today.",
    "Sorry about that! Please press the reset button for five seconds.",
    "Sorry, the kettle is sold out until May; the smaller one is in stock.",
    "I'm sorry to hear that. You can return it within 30 days.",
    "Unfortunately, we cannot ship to Norway. We ship to all countries of the EU.",
    "Unfortunately, the offer ended on Sunday.",
    "No, the lid is not dishwasher-safe.",
    "No, you cannot return opened tea.",
    "I can't find an order of that number. Could you check it?",
    "I am unable to find your order without its number. It is in the e-mail that confirms it.",
    "I can't see the picture, but from what you say it is limescale: use vinegar.",
    "I don't know. I will hand you over to a colleague.",
    "I do not have that information here; the manual has it on page 4.",
    "I understand. Please send it back; we pay the postage.",
    "I apologize for the mistake. The refund was sent this morning.",
    "My apologies, it is 1.35 litres, not 1.5.",
    "As an AI assistant, I can help you with orders, returns and care.",
    "I will not charge you for the second parcel.",
    "I won't keep you waiting: it is in the post.",
    "I'm not able to ship before Monday, but I have set the parcel aside.",
    "I'm afraid the kettle has to be descaled first. Here is how.",
    "I'd rather take the large one: it boils faster.",
    "I can share the tracking number: AB-12.",
    "You cannot help it: copper darkens.",
    "We cannot give refunds after 30 days, but we repair for two years.",
    "This is something I can help with. What is the number of your order?",
    "That is against the law in Norway; in Sweden it is allowed.",
    "It cannot be repaired, so we send you a new one.",
    "I can not only mend it but also polish it.",
    "Declining balance means that the rate falls on what is left.",
    "Refusal rates rose to 12 % in 2020.",
    "Es tut mir leid, dass das Paket zu spät kam. Es ist morgen da.",
    "Leider ist der Kessel ausverkauft.",
    "Ich kann Ihnen gern helfen: Wie lautet die Nummer?",
    "Ich kann nicht nur helfen, sondern auch liefern.",
    "Leider können wir nach 30 Tagen nichts mehr erstatten.",
    "Nein, der Deckel darf nicht in die Spülmaschine.",
    "Het spijt me dat het zo lang duurt. Uw pakket komt morgen.",
    "Ik kan u daar graag mee helpen.",
    "Je suis désolé pour le retard. Votre colis arrive demain.",
    "Je ne peux pas m'empêcher de sourire.",
    "Malheureusement, la bouilloire est épuisée.",
    "Je peux vous aider : quel est le numéro ?",
    "Lo siento mucho por el retraso. El paquete llega mañana.",
    "No puedo darte las gracias lo suficiente.",
    "Puedo ayudarte con eso.",
    "Mi dispiace per il ritardo. Il pacco arriva domani.",
    "Non posso fare a meno di sorridere.",
    "Desculpe pelo atraso. A encomenda chega amanhã.",
    "Não posso deixar de agradecer.",
    "Извините за задержку. Посылка придёт завтра.",
    "Не могу не согласиться: чай лучше заваривать дольше.",
    "很抱歉让您久等了，包裹明天到。",
    "我不能保证明天到，但通常两天就到。",
    "申し訳ありません。明日お届けします。",
    "お手伝いできて嬉しいです。",
]


def test_the_lists_are_as_long_as_is_said() -> None:
    assert len(set(REFUSALS)) == len(set(NO_REFUSALS)) == 60


def test_precision_and_recall() -> None:
    assert [text for text in NO_REFUSALS if declines(text)] == []
    missed = [text for text in REFUSALS if not declines(text)]
    assert len(missed) == 6, missed


def test_real_refusals_and_real_answers(data_dir: Path) -> None:
    """Precision on texts that the patterns were not written from: every hit was read and declines."""

    def hits(name: str, *columns: str) -> list[str]:
        rows = [
            json.loads(line)
            for path in sorted((data_dir / name).glob("*.jsonl"))
            for line in path.open(encoding="utf-8")
        ]
        texts = [m["content"] for r in rows for m in r.get("messages", ()) if m["role"] == "assistant"]
        return [t for t in texts + [r[c] for r in rows for c in columns if isinstance(r.get(c), str)] if declines(t)]

    assert len(hits("hh_harmless", "chosen", "rejected")) == 18
    assert set(hits("personality_chat", "answer", "response", "completion")) <= {
        "That's not something I can do.",
        "Sorry, I can't do that.",
        "Sorry. That's not something I can do.",
    }
    for name in ("bitext_intents", "dstc9_faq", "dolly_sample", "self_instruct"):
        assert hits(name, "text", "answer", "response", "output", "completion") == []


def test_the_metric_counts_and_its_direction_is_the_recipes() -> None:
    found = build(Use(use="refusal"), (), None)
    assert value(found, pairs([("", REFUSALS[0]), ("", NO_REFUSALS[0]), ("", ""), ("", REFUSALS[30])])) == 0.25
    assert not found.higher_is_better and build(Use(use="refusal", wanted=True), (), None).higher_is_better
    assert found.stats(sample(REFUSALS[0], prompt="")) is None


@pytest.mark.parametrize("wrap", ["**{}**", "“{}”", "  {}\n", "> {}", "{}" + " and so on" * 1000])
def test_marks_around_the_answer_do_not_hide_it(wrap: str) -> None:
    assert declines(wrap.format(REFUSALS[0])) and not declines(wrap.format(NO_REFUSALS[0]))
