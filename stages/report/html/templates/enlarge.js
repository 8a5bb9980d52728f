// A click on a picture shows it over the page. The dialog element itself closes on Escape and gives the focus back.
const enlarged = document.querySelector("dialog.enlarged");

function enlarge(image, caption) {
  const large = enlarged.querySelector(".stage img");
  large.src = image.src;
  large.alt = image.alt;
  large.classList.toggle("pixels", image.classList.contains("pixels"));
  // As attributes, not as laid out: the size of the file.
  const width = Number(image.getAttribute("width"));
  const height = Number(image.getAttribute("height"));
  large.setAttribute("width", width);
  large.setAttribute("height", height);
  large.style.setProperty("--ratio", width / height);
  enlarged.querySelector(".caption").textContent = caption;
  enlarged.showModal();
  enlarged.querySelector(".stage").scrollTo(0, 0);
}

// Puts a picture into a button that enlarges it.
function enlargeButton(image, caption) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "enlarge";
  button.title = "Enlarge";
  button.setAttribute("aria-label", `Enlarge: ${image.alt}`);
  button.append(image);
  button.addEventListener("click", () => enlarge(image, caption));
  return button;
}

function setUpFigures() {
  for (const image of document.querySelectorAll("img.enlargeable")) {
    const figure = image.parentElement;
    figure.prepend(enlargeButton(image, figure.querySelector("figcaption").textContent));
  }
  enlarged.addEventListener("click", (event) => {
    if (!event.target.closest("img, button, .caption")) enlarged.close(); // beside the picture
  });
}

setUpFigures();
