// Puts the style sheet into the page template, so that a page is one answer.
'use strict';

const fs = require('node:fs');

const page = fs.readFileSync('page.html', 'utf8');
const style = fs.readFileSync('style.css', 'utf8');

fs.mkdirSync('dist', { recursive: true });
fs.writeFileSync('dist/page.html', page.replace('/* style.css */', () => style.trim()));
fs.copyFileSync('server.js', 'dist/server.js');
