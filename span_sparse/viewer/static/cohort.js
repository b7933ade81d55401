// The list of slides: search, order, arrow keys. Every text is set as text: ids come from other people's tables.

export function buildList(slides, errorWords, choose) {
  const list = document.getElementById("slides");
  const search = document.getElementById("search");
  const order = document.getElementById("order");
  const count = document.getElementById("count");
  const hasErrors = slides.some((slide) => slide.error !== null);
  if (!hasErrors) {
    order.value = "id";
    order.options[0].disabled = true;
  }
  const buttons = slides.map((slide, number) => {
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.number = number;
    button.append(part("name", slide.id));
    const detail = part("detail", "");
    if (slide.wrong) detail.append(part("wrong", "wrong "));
    const outcome = [slide.true && `${slide.true} →`, slide.predicted].filter(Boolean).join(" ");
    const error = slide.error === null ? "" : ` · error ${slide.error.toFixed(3)}`;
    detail.append(outcome + error);
    button.append(detail);
    if (slide.error !== null) button.title = errorWords;
    button.addEventListener("click", () => choose(number));
    const item = document.createElement("li");
    item.append(button);
    return button;
  });

  function show() {
    const wanted = search.value.trim().toLowerCase();
    const shown = slides
      .map((slide, number) => number)
      .filter((number) => `${slides[number].id} ${slides[number].case} ${slides[number].true}`.toLowerCase().includes(wanted));
    if (order.value === "id") {
      shown.sort((a, b) => slides[a].id.localeCompare(slides[b].id, undefined, { numeric: true }));
    }
    list.replaceChildren(...shown.map((number) => buttons[number].parentElement));
    count.textContent = `${shown.length} of ${slides.length} slides`;
  }
  list.addEventListener("keydown", (event) => {
    const moves = { ArrowDown: 1, ArrowUp: -1, Home: -Infinity, End: Infinity };
    if (!(event.key in moves)) return;
    const shown = [...list.querySelectorAll("button")];
    const place = shown.indexOf(document.activeElement) + moves[event.key];
    shown[Math.max(0, Math.min(shown.length - 1, place))].focus();
    event.preventDefault();
  });
  search.addEventListener("input", show);
  order.addEventListener("change", show);
  show();

  return {
    first: () => Number(list.querySelector("button")?.dataset.number ?? -1),
    mark(chosen) {
      buttons.forEach((button, number) => button.setAttribute("aria-current", String(number === chosen)));
      buttons[chosen].scrollIntoView({ block: "nearest" });
    },
  };
}

function part(name, text) {
  const span = document.createElement("span");
  span.className = name;
  span.textContent = text;
  return span;
}
