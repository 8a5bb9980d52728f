// The button chooses between the light and the dark theme. Until it is used, the page follows the system (style.css).
const THEME = "vitlab-theme"; // of localStorage, which all files on a disk may share

function storedTheme() {
  try {
    return localStorage.getItem(THEME);
  } catch {
    return null; // the browser may forbid storage to files
  }
}

function storeTheme(theme) {
  try {
    localStorage.setItem(THEME, theme);
  } catch {
    // The choice then lasts until the page is closed.
  }
}

function setUpTheme() {
  const button = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const current = () => document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light");
  const describe = () => {
    button.textContent = current() === "dark" ? "Light theme" : "Dark theme";
  };
  const stored = storedTheme();
  if (stored) document.documentElement.dataset.theme = stored;
  button.addEventListener("click", () => {
    const theme = current() === "dark" ? "light" : "dark";
    document.documentElement.dataset.theme = theme;
    storeTheme(theme);
    describe();
  });
  system.addEventListener("change", describe);
  describe();
  button.hidden = false;
}

setUpTheme();
