// Hides the documents and answers that the filters leave out. Without scripts, everything is shown.
"use strict";
(() => {
  const form = document.querySelector(".filters");
  const articles = [...document.querySelectorAll("article")];
  const rest = document.querySelector("details.rest");
  const value = (id) => document.getElementById(id)?.value ?? "";
  const apply = () => {
    const task = value("filter-task");
    const change = value("filter-change");
    const words = value("filter-words").toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const article of articles) {
      const text = article.textContent.toLowerCase();
      const fits =
        (!task || article.dataset.task === task) &&
        (!change || article.dataset.change === change) &&
        words.every((word) => text.includes(word));
      article.hidden = !fits;
      shown += fits;
    }
    for (const box of form.querySelectorAll("input[name=system]")) {
      for (const answer of document.querySelectorAll(`.answer[data-system="${box.value}"]`)) {
        answer.hidden = !box.checked;
      }
    }
    if (rest && shown < articles.length) rest.open = true;
    document.getElementById("filter-count").textContent = `${shown} of ${articles.length} documents`;
  };
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  apply();
})();
