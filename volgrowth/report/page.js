"use strict";
// The page is complete without this script. It adds buttons that copy row numbers.
(() => {
  const copy = async (text) => {
    if (navigator.clipboard && window.isSecureContext) return navigator.clipboard.writeText(text);
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    if (!copied) throw new Error("the browser refused");
  };
  const status = document.getElementById("copy-status");
  for (const place of document.querySelectorAll("[data-copy]")) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = place.dataset.copyLabel;
    button.addEventListener("click", async () => {
      try {
        await copy(place.dataset.copy);
        status.textContent = "Row numbers copied.";
        button.textContent = "Copied";
      } catch {
        status.textContent = "The browser did not allow copying.";
        button.textContent = "Not copied";
      }
      setTimeout(() => { button.textContent = place.dataset.copyLabel; }, 2000);
    });
    place.append(button);
  }
})();
