// A report's curves; on a phone its parts are folded. Needs curves.js.

Curves.start($("curves"), JSON.parse($("board").textContent));
if (matchMedia("(max-width: 720px)").matches)
  for (const part of document.querySelectorAll("details.part, #curves details")) part.open = false;
