// The metadata door: cloud-init's NoCloud over HTTP. The token in the path is the machine's, for this deployment; a GET changes nothing.
import type { DoorEnv } from '@muster/server/http/incoming'
import type { Hono } from 'hono'
import { deploymentSecrets, machineOfToken, phoneHome } from '../domain/agent.ts'
import type { Core } from '../domain/core.ts'
import { machineDoor } from './machine-requests.ts'

/** `baseUrl`: how machines reach this partition. */
export function metadataDoor(core: Core, options: { baseUrl: string }): Hono<DoorEnv> {
  const app = machineDoor(core.log)
  const machineOf = (token: string) => machineOfToken(core, 'metadata', token)

  app.get('/:token/meta-data', async c => {
    const machine = await machineOf(c.req.param('token'))
    return c.text(
      yaml({
        // Bound to the deployment: a new one makes cloud-init run its per-instance steps again.
        'instance-id': `${machine.id}-${machine.run}`,
        'local-hostname': machine.hostname,
        'public-keys': deploymentSecrets(core, machine).sshKeys,
      }),
    )
  })
  app.get('/:token/user-data', async c => {
    const { userData } = deploymentSecrets(core, await machineOf(c.req.param('token')))
    return c.text(userData ?? '#cloud-config\n{}\n')
  })
  app.get('/:token/vendor-data', async c => {
    const token = c.req.param('token')
    await machineOf(token)
    const url = `${options.baseUrl}/metadata/${token}/phone-home`
    return c.text(`#cloud-config\n${yaml({ phone_home: { url, post: ['instance_id', 'hostname', 'fqdn'], tries: 10 } })}`)
  })
  app.get('/:token/network-config', async c => {
    const machine = await machineOf(c.req.param('token'))
    const ethernets = Object.fromEntries(
      machine.interfaces.map(({ mac }, index) => [`port${index}`, { match: { macaddress: mac }, dhcp4: true, optional: index > 0 }]),
    )
    return c.text(yaml({ version: 2, ethernets }))
  })
  app.post('/:token/phone-home', async c => {
    await phoneHome(core, await machineOf(c.req.param('token')))
    return c.body(null, 204)
  })
  return app
}

/** YAML 1.2 contains JSON, so a line per member with its value as JSON needs no YAML writer and quotes everything rightly. */
function yaml(members: Record<string, unknown>): string {
  return `${Object.entries(members)
    .map(([name, value]) => `${name}: ${JSON.stringify(value)}`)
    .join('\n')}\n`
}
