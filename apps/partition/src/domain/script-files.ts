// The scripts of a partition: `scripts/<name>.sh` in the files folder, each with a head of comments that is YAML. Those of the agent it knows anyway.
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs'
import path from 'node:path'
import { builtInScripts, type Script, scriptBytesMax, scriptHead, scriptName, scriptsMax } from '@muster/shared/scripts'
import { parse } from 'yaml'

const ending = '.sh'

/** Told what of a partition's files cannot be used, and why. */
export type OnTrouble = (place: string, error: unknown) => void

/** Every script that can be asked for here, by name. One that cannot be used is left out, and `onTrouble` is told. */
export function readScripts(folder: string, onTrouble: OnTrouble): Script[] {
  const scripts: Script[] = Object.entries(builtInScripts).map(([name, head]) => ({ name, text: null, ...head }))
  const place = path.join(folder, 'scripts')
  const files = existsSync(place) ? readdirSync(place).filter(file => file.endsWith(ending)) : []
  for (const [index, file] of files.sort().entries()) {
    try {
      if (index >= scriptsMax) throw new Error(`a partition has at most ${scriptsMax} scripts`)
      scripts.push(readScript(path.join(place, file)))
    } catch (error) {
      onTrouble(path.join('scripts', file), error)
    }
  }
  return scripts.sort((a, b) => (a.name < b.name ? -1 : 1))
}

function readScript(file: string): Script {
  const name = scriptName.parse(path.basename(file, ending))
  if (Object.hasOwn(builtInScripts, name)) throw new Error(`the agent has a script ${name} already`)
  const { size } = statSync(file)
  if (size > scriptBytesMax) throw new Error(`it has ${size} bytes, more than ${scriptBytesMax}`)
  const text = readFileSync(file, 'utf8')
  return { name, text, ...scriptHead.parse(parse(headOf(text))) }
}

/** The YAML between `# --- muster` and `# ---`. */
function headOf(text: string): string {
  const found = /^# --- muster\r?\n((?:#.*\r?\n)*?)# ---\r?$/m.exec(text)
  if (!found) throw new Error('it has no head: comments from "# --- muster" to "# ---" that say its title, kind and timeout')
  return (found[1] as string).replace(/^# ?/gm, '')
}
