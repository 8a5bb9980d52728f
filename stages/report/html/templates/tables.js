// Tables sort by a column when its header is clicked, or Enter is pressed on it: upwards, then downwards, then as it was.
function sortRows(table, column, descending) {
  const isNumber = table.tHead.rows[0].cells[column].classList.contains("number");
  const rows = [...table.tBodies[0].rows];
  const key = (row) => {
    const cell = row.cells[column];
    if (!isNumber) return cell.textContent;
    return cell.dataset.value === undefined ? null : Number(cell.dataset.value);
  };
  const compare = isNumber ? (a, b) => a - b : (a, b) => a.localeCompare(b, "en", { numeric: true });
  rows.sort((first, second) => {
    const [a, b] = [key(first), key(second)];
    // A cell without a number is last in both directions.
    if (a === null || b === null) return (a === null) - (b === null);
    return descending ? compare(b, a) : compare(a, b);
  });
  table.tBodies[0].append(...rows);
}

function setUpTables() {
  for (const table of document.querySelectorAll("table.sortable")) {
    const headers = [...table.tHead.rows[0].cells];
    const original = [...table.tBodies[0].rows];
    headers.forEach((header, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      button.append(...header.childNodes);
      header.append(button);
      button.addEventListener("click", () => {
        const current = header.getAttribute("aria-sort");
        for (const other of headers) other.removeAttribute("aria-sort");
        if (current === "descending") {
          table.tBodies[0].append(...original);
          return;
        }
        header.setAttribute("aria-sort", current === "ascending" ? "descending" : "ascending");
        sortRows(table, column, current === "ascending");
      });
    });
  }
}

setUpTables();
